"""Figure 3: how the known anomalies deform the distribution, on 2-D data.

`python -m jax_noisy_anogan.reproduction.figure3 --config FILE.py --out DIR`
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from PIL import Image

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import OptimConfig
from jax_noisy_anogan.reproduction import ring
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, story
from jax_noisy_anogan.reproduction.ring import (
    _ABNORMAL,
    _D_COLORS,
    _GRID,
    _NORMAL,
    _OUTSIDE,
    _SHOWN,
    _SHOWN_KNOWN,
    MODE_RADIUS,
    Mixture,
    Points,
    Row,
    ToyConfig,
    make_grid,
    make_mixture,
    measure,
    mode_shares,
    nearest_modes,
    optimal_mass,
    summarize,
    train,
    validate_toy,
)


def cells(bench: Bench) -> list[Cell]:
    """All trainings together: they share their steps."""
    config = _config(bench)

    def compute() -> Values:
        rows = run(config, bench.out / "runs" / "figure3")
        return {"rows": [row._asdict() for row in rows]}

    return [Cell("figure3", dataclasses.asdict(config), compute)]


def results(bench: Bench) -> list[Result]:
    """Generated mass on the abnormal mode, by objective and gamma."""
    listed = cells(bench)
    found = bench.kept(listed[0])
    rows = [] if found is None else found["rows"]
    picture = bench.out / "runs" / "figure3" / "figure3.png"
    config = _config(bench)
    return [
        Result(
            "figure3",
            "Figure 3: the distribution deformed, on a ring of Gaussians",
            ["objective", "gamma", "abnormal mass", "deviation", "optimum", "normal modes drawn"],
            [
                [
                    row["objective"],
                    f"{row['gamma']:g}",
                    *(float(row[name]) for name in ("abnormal", "abnormal_std", "optimum")),
                    f"{row['covered']} of {config.modes - 1}",
                ]
                for row in rows
            ],
            story(
                bench,
                listed,
                f"{config.contamination:.0%} of the training data are on the abnormal mode; "
                f"{config.seeds} seeds from {config.seed}; {config.steps:,} steps",
            ),
            np.asarray(Image.open(picture).convert("RGB")) if found and picture.exists() else None,
        )
    ]


def _config(bench: Bench) -> ToyConfig:
    if not bench.quick:
        return ToyConfig()
    return ToyConfig(
        seeds=1,
        steps=1000,
        batch_size=128,
        samples=4000,
        optim=OptimConfig(learning_rate=0.005, ema_half_life_images=10_000.0),
    )


def markdown_table(config: ToyConfig, rows: list[Row]) -> str:
    """The rows as a Markdown table that also reads well on a terminal."""
    heads = (
        "objective",
        "gamma",
        "abnormal mass",
        "of p_g*",
        "relative to gamma = 1",
        "normal modes drawn",
        "weakest of them",
        "outside all modes",
        "at most a tenth",
    )
    verdict = {None: "", True: "yes", False: "no"}
    cells = [
        (
            row.objective,
            f"{row.gamma:g}",
            f"{row.abnormal:.2%} ± {row.abnormal_std:.2%}",
            f"{row.optimum:.2%}",
            "-" if row.ratio is None else f"{row.ratio:.4f}",
            f"{row.covered} of {config.modes - 1}",
            f"{row.weakest:.2f} ± {row.weakest_std:.2f}",
            f"{row.outside:.1%}",
            verdict[row.subtracted],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *cells]
    return "".join("| " + " | ".join(map(str.ljust, line, widths)) + " |\n" for line in lines)


def write_tables(config: ToyConfig, rows: list[Row], out: Path) -> None:
    """Write `toy2d.json` (settings and rows), `toy2d.csv` and `toy2d.md`."""
    content = {"config": dataclasses.asdict(config), "rows": [row._asdict() for row in rows]}
    (out / "toy2d.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "toy2d.md").write_text(markdown_table(config, rows))
    names = [f"share_{mode}" for mode in range(config.modes - 1)]
    with (out / "toy2d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        kept = [name for name in Row._fields if name != "shares"]
        writer.writerow([*kept, *names, "share_abnormal", "share_outside"])
        for row in rows:
            writer.writerow([*(getattr(row, name) for name in kept), *row.shares])


def draw_figure(
    config: ToyConfig, rows: list[Row], results: dict[str, ring.Result], path: Path
) -> None:
    """Draw Figure 3: data, p_g* and, for each objective and gamma, drawn points over D's contour.

    Points and D are those of the first seed; the percentages are means over seeds.
    """
    mixture = make_mixture(config)
    columns, count = len(config.gammas) + 1, len(results)
    figure = Figure(figsize=(2.9 * columns, 2.9 * (count + 1) + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots(count + 1, columns, squeeze=False)
    figure.suptitle(
        "Known anomalies are subtracted from what the generator can draw\n"
        "red: the abnormal mode (within the dashed circle) and the mass on it",
        fontsize=13,
    )
    _draw_data(axes[0, 0], config, mixture)
    for axis, gamma in zip(axes[0, 1:], config.gammas, strict=True):
        _draw_optimum(axis, mixture, gamma)
    for line, (objective, result) in zip(axes[1:], results.items(), strict=True):
        for index, axis in enumerate(line[1:]):
            row = next(
                r for r in rows if (r.objective, r.gamma) == (objective, config.gammas[index])
            )
            _draw_result(axis, mixture, result, index, row)
    for axis, objective in zip(axes[1:, 0], results, strict=True):
        _draw_bars(axis, [row for row in rows if row.objective == objective])
    scale = ScalarMappable(Normalize(0.0, 1.0), _D_COLORS)
    bar = figure.colorbar(
        scale, ax=axes[1:, -1], label="D(x), probability of normal", shrink=0.7, aspect=30
    )
    bar.set_ticks([0.0, 0.25, 0.5, 0.75, 1.0])
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        with Image.open(buffer) as image:
            # A palette makes the file about three times smaller.
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _frame(axis: Axes, mixture: Mixture, title: str) -> None:
    reach = np.abs(mixture.centers).max() + 5.0 * mixture.std
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.add_patch(
        Circle(
            tuple(mixture.centers[-1]),
            MODE_RADIUS * mixture.std,
            fill=False,
            color=_ABNORMAL,
            linestyle="--",
            linewidth=1.2,
        )
    )


def _caption(axis: Axes, text: str) -> None:
    axis.text(
        0.5,
        0.5,
        text,
        transform=axis.transAxes,
        ha="center",
        va="center",
        fontsize=14,
        color=_ABNORMAL,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _scatter(axis: Axes, mixture: Mixture, points: Points) -> None:
    modes = nearest_modes(points, mixture)
    abnormal = len(mixture.centers) - 1
    for color, chosen in (
        (_OUTSIDE, modes > abnormal),
        (_NORMAL, modes < abnormal),
        (_ABNORMAL, modes == abnormal),
    ):
        x, y = points[chosen].T
        axis.scatter(x, y, s=3, color=color, alpha=0.6, linewidths=0)


def _draw_data(axis: Axes, config: ToyConfig, mixture: Mixture) -> None:
    random = np.random.default_rng(config.seed)
    modes = random.choice(config.modes, _SHOWN, p=mixture.weights)
    points = mixture.centers[modes] + mixture.std * random.normal(size=(_SHOWN, 2))
    known = mixture.centers[-1] + mixture.std * random.normal(size=(_SHOWN_KNOWN, 2))
    _frame(axis, mixture, "training data")
    _scatter(axis, mixture, points)
    x, y = known.T
    axis.scatter(x, y, s=14, marker="x", color="black", linewidths=0.8)
    axis.legend(
        handles=[
            _legend_entry("normal", _NORMAL, "o"),
            _legend_entry(f"{config.contamination:.0%} hidden", _ABNORMAL, "o"),
            _legend_entry("known, $p_{an}$", "black", "x"),
        ],
        title="$p_d$ and $p_{an}$",
        loc="center",
        frameon=False,
        fontsize=9,
        handletextpad=0.1,
    )


def _legend_entry(label: str, color: str, marker: str) -> Line2D:
    return Line2D([], [], color=color, marker=marker, markersize=4, linestyle="none", label=label)


def _draw_optimum(axis: Axes, mixture: Mixture, gamma: float) -> None:
    points, mass = optimal_mass(mixture, gamma, _GRID)
    shape = (_GRID, _GRID)
    x, y = points.T.reshape(2, *shape)
    peak = np.linspace(0.0, 1.05 * mass.max(), 12)[1:]
    _frame(axis, mixture, rf"optimum $p_g^*$, $\gamma$ = {gamma:g}")
    axis.contourf(x, y, mass.reshape(shape), levels=peak, cmap="Blues")
    abnormal = mode_shares(points, mixture, mass)[-2]
    _caption(axis, f"{abnormal:.1%}")


def _draw_result(axis: Axes, mixture: Mixture, result: ring.Result, index: int, row: Row) -> None:
    points, _ = make_grid(mixture, _GRID)
    x, y = points.T.reshape(2, _GRID, _GRID)
    d = (1.0 / (1.0 + np.exp(-result.logits[index].astype(np.float64)))).reshape(_GRID, _GRID)
    name = row.objective.replace("equation_", "Eq. ")
    _frame(axis, mixture, rf"drawn, {name}, $\gamma$ = {row.gamma:g}")
    axis.contourf(x, y, d, levels=np.linspace(0.0, 1.0, 21), cmap=_D_COLORS)
    axis.contour(x, y, d, levels=np.linspace(0.1, 0.9, 9), colors="0.55", linewidths=0.4)
    _scatter(axis, mixture, result.points[index, :_SHOWN])
    _caption(axis, f"{row.abnormal:.1%}")


def _draw_bars(axis: Axes, rows: list[Row]) -> None:
    place = np.arange(len(rows))
    share = [100.0 * row.abnormal for row in rows]
    axis.bar(
        place,
        share,
        yerr=[100.0 * row.abnormal_std for row in rows],
        width=0.55,
        color=_ABNORMAL,
        capsize=3,
        label="drawn",
    )
    optimum = [100.0 * row.optimum for row in rows]
    axis.scatter(place, optimum, marker="_", s=700, color="black", label="$p_g^*$", zorder=3)
    for x, row in enumerate(rows):
        height = 100.0 * max(row.abnormal + row.abnormal_std, row.optimum)
        axis.text(x, height + 0.6, f"{row.abnormal:.2%}", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(place, [rf"$\gamma$ = {row.gamma:g}" for row in rows])
    axis.set_ylim(0.0, 1.25 * max(*share, *optimum) + 1.0)
    axis.set_ylabel("% of what is drawn")
    axis.set_box_aspect(1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"abnormal mass, {rows[0].objective.replace('equation_', 'Eq. ')}", fontsize=11)
    axis.legend(frameon=False, fontsize=9)


def run(config: ToyConfig, out: Path) -> list[Row]:
    """Train, measure, print the table, and write it and the picture into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    results = {}
    for objective in config.objectives:
        start = time.perf_counter()
        result = results[objective] = measure(config, train(config, objective))
        rows += summarize(config, objective, result.shares)
        trainings = len(config.gammas) * config.seeds
        seconds = time.perf_counter() - start
        print(f"{objective}: {trainings} trainings of {config.steps:,} steps in {seconds:.0f} s")
    print(markdown_table(config, rows), end="")
    write_tables(config, rows, out)
    draw_figure(config, rows, results, out / "figure3.png")
    print(f"tables and picture: {out}")
    return rows


def main() -> None:
    """Define the flags and run the command."""
    config = cli.define_config()
    out = flags.DEFINE_string(
        "out", None, "Folder for the tables and the picture; is created", required=True
    )

    def call(arguments: list[str]) -> None:
        cli.no_arguments(arguments)
        run(validate_toy(config.value), Path(out.value).expanduser())

    cli.run(call)


if __name__ == "__main__":
    main()
