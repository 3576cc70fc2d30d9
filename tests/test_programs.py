"""Benchmarks of programs: operations counted, memory, and an accelerator's rows at tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import accelerator
import convolutions
import memory
import precision
import programs

from jax_noisy_anogan.networks import convolution

TINY = {"fmap_base": 64, "fmap_max": 8, "latent_size": 16, "channels": 1}


def test_flops_are_counted_once_per_turn_and_of_one_alternative():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    product = 2 * 3 * 5 * 7
    assert programs.count_flops(jnp.matmul, a, b) == product

    def looped(a, b):
        return lax.scan(lambda total, _: (total + jax.jit(jnp.matmul)(a, b), None), a @ b, length=4)

    assert programs.count_flops(looped, a, b) == 5 * product

    def either(a, b):
        return lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert programs.count_flops(either, a, b) == product

    def unused(a, b):
        return a + 0.0 * (a @ b).shape[0]

    assert programs.count_flops(unused, a, b) == 0

    x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    assert programs.count_flops(convolve, x, kernel) == 2 * (2 * 6 * 6 * 4) * (9 * 3)


def test_all_forms_of_a_convolution_give_the_same_and_each_has_a_rate():
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(key, (4, 8, 8, 2)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, 2, 2))
    rates = dict(convolutions.measure((4, 8, 2), seconds=0.0))
    for question, compared, _ in convolutions.forms():
        assert all(rate > 0 for rate in rates[question].values())
        assert rates[question].keys() == compared.keys()
        values = [form(x, kernel, y) for form in compared.values()]
        for value in values[1:]:
            chex.assert_trees_all_close(value, values[0], rtol=1e-4, atol=1e-4)


@pytest.fixture
def unpacked(monkeypatch):
    """Narrow layers without the zeros that fill their wide pixels."""
    monkeypatch.setattr(convolution, "FEW_CHANNELS", 0)


@pytest.mark.usefixtures("unpacked")
def test_a_search_step_costs_two_passes_through_both_networks_and_back_to_the_latent():
    """At 4 x 4 the passes can be added up by hand."""
    one, two = (programs.Work("search", 4, 6, steps=n, **TINY).flops() for n in (1, 2))
    dense, conv = 16 * 128 + 128 * 8 + 8, 16 * 9 * (8 * 8 + 9 * 8)
    rgb = 16 * 8 * 2
    assert two - one == 6 * 4 * (dense + conv + rgb)


@pytest.mark.usefixtures("unpacked")
def test_recomputed_blocks_and_parts_cost_what_they_cost():
    """Forwards through the blocks that the backward pass repeats; nothing else."""

    def gradient(**how):
        networks = programs.Work("train", 8, 4, **TINY, **how).networks()
        params = jax.eval_shape(networks.init, jax.random.key(0)).generator
        z = jax.ShapeDtypeStruct((4, 16), jnp.float32)
        return programs.count_flops(
            jax.value_and_grad(lambda params, z: jnp.square(networks.generate(params, z)).sum()),
            params,
            z,
        )

    plain = gradient()
    block = 4 * 2 * 64 * 9 * (8 * 8 + 8 * 8)  # widths at 4 x 4 and 8 x 8 are 8 and 8
    assert gradient(rematerialize=True) - plain == block
    first = 4 * 2 * (16 * 128 + 16 * 9 * 8 * 8)
    assert gradient(microbatch=1) - plain == block + first


def test_settings_that_save_memory_do_not_count_as_work():
    plain = programs.Work("train", 8, 4, **TINY)
    saving = programs.Work("train", 8, 4, rematerialize=True, microbatch=1, **TINY)
    assert saving.flops() == plain.flops() > 0
    assert saving.name == f"{plain.name} remat microbatch 1"


def test_memory_rows_name_the_smallest_card_and_the_saving(tmp_path, monkeypatch):
    def works(quick):
        plain = programs.Work("search", 8, 2, **TINY)
        return [[plain, programs.Work("search", 8, 2, rematerialize=True, **TINY)]]

    monkeypatch.setattr(memory, "works", works)
    rows = memory.main(["--json", str(tmp_path / "rows.json")])
    assert [row.name for row in rows] == ["search 8² batch 2 float32"] * 1 + [
        "search 8² batch 2 float32 remat"
    ]
    assert rows[0].reference is None
    assert rows[1].ratio == pytest.approx(rows[1].ours / rows[0].ours)
    # Parameters of both networks alone, in float32.
    networks = programs.Work("search", 8, 2, **TINY).networks()
    leaves = jax.tree.leaves(jax.eval_shape(networks.init, jax.random.key(0)))
    assert rows[0].ours * 2**30 > 4 * sum(leaf.size for leaf in leaves)
    assert rows[0].fits == list(memory.CARDS)
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in saved] == [row.name for row in rows]


def test_an_accelerators_rows_are_complete_or_say_why_not(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "mnist", lambda options: {"name": "m", "skipped": "untested"})
    file = tmp_path / "rows.json"
    arguments = ["--quick", "--json", str(file), "--steps", "1", "--only", "8²"]
    rows = accelerator.main([*arguments, "--dtypes", "bfloat16"])
    assert [row["name"] for row in rows] == [
        "train 8² batch 4 bfloat16",
        "search 8² batch 4 bfloat16",
    ]
    for row in rows:
        assert row["finite"]
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
        assert row["images_per_second"] > 0
        assert row["gibibytes"] > 0
    assert json.loads(file.read_text()) == rows
    late = accelerator.main([*arguments, "--time_budget_s", "0"])
    assert len(late) == 4
    assert all("budget" in row["skipped"] for row in late)


def test_a_program_that_does_not_fit_saves_memory_or_is_refused(monkeypatch):
    work = programs.Work("train", 8, 4, **TINY)
    sizes = {work: 300, programs.Work("train", 8, 4, rematerialize=True, microbatch=1, **TINY): 100}
    monkeypatch.setattr(programs.Work, "compile", lambda self, options=None: self)
    monkeypatch.setattr(accelerator, "program_bytes", sizes.__getitem__)
    assert accelerator.fitting_program(work, 400)[0] == work
    assert accelerator.fitting_program(work, 200)[0].microbatch == 1
    with pytest.raises(MemoryError, match="needs"):
        accelerator.fitting_program(work, 50)


def test_precision_compares_every_term_of_a_run(finished_run, monkeypatch):
    _, run = finished_run
    seen, scores = [], precision.scores

    def noting(trained, config, images):
        seen.append((trained.networks.generator.dtype, trained.networks.discriminator.dtype))
        return scores(trained, config, images)

    monkeypatch.setattr(precision, "scores", noting)
    rows = {row["name"].split(",")[0]: row for row in precision.compare(run, images=40, steps=2)}
    assert seen == [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.bfloat16)]
    assert list(rows) == list(precision.TERMS)
    assert rows["residual"]["ours"] >= precision.WANTED
    for row in rows.values():
        assert -1.0 <= row["ours"] <= 1.0
        assert 0.0 <= row["auroc_bfloat16"] <= 1.0
