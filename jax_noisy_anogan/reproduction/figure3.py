"""Figure 3: how the known anomalies deform the distribution, on a ring of Gaussians."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from PIL import Image

from jax_noisy_anogan import pictures
from jax_noisy_anogan.reproduction import ring
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, story
from jax_noisy_anogan.reproduction.ring import Measured, RingConfig
from jax_noisy_anogan.runtime.files import digest

_SHOWN = 1200  # points in a panel
_SHOWN_KNOWN = 25
_NORMAL, _ABNORMAL, _OUTSIDE = "#1f5fa8", "#d1352b", "#8a8a8a"
_D_COLORS = LinearSegmentedColormap.from_list("d", ["#f6c9bd", "#fdfdfb", "#bcdcc9"])


def cells(bench: Bench) -> list[Cell]:
    """All trainings together: they share their steps."""
    config = _config(bench)

    def compute() -> Values:
        found = {o: ring.measure(config, ring.train(config, o)) for o in config.objectives}
        rows = [r for o, part in found.items() for r in ring.summarize(config, o, part.shares)]
        _picture(bench).parent.mkdir(parents=True, exist_ok=True)
        draw_figure(config, rows, found, _picture(bench))
        return {"rows": [row._asdict() for row in rows]}

    return [Cell("figure3", dataclasses.asdict(config), compute)]


def results(bench: Bench) -> list[Result]:
    """Generated mass on the abnormal mode, by objective and gamma."""
    listed = cells(bench)
    found = bench.kept(listed[0])
    rows = [] if found is None else [ring.Row(**row) for row in found["rows"]]
    picture = _picture(bench)
    config = _config(bench)
    return [
        Result(
            "figure3",
            "Figure 3: the distribution deformed, on a ring of Gaussians",
            [
                "objective",
                "gamma",
                "abnormal mass",
                "deviation",
                "optimum p_g*",
                "relative to gamma = 1",
                "normal modes generated",
                "weakest of them",
                "outside all modes",
                "at most a tenth",
            ],
            [
                [
                    row.objective,
                    f"{row.gamma:g}",
                    row.abnormal,
                    row.abnormal_std,
                    row.optimum,
                    row.ratio,
                    f"{row.covered} of {config.modes - 1}",
                    row.weakest,
                    row.outside,
                    {None: "", True: "yes", False: "no"}[row.subtracted],
                ]
                for row in rows
            ],
            story(
                bench,
                listed,
                f"{config.contamination:.0%} of the training data are on the abnormal mode; "
                f"{config.seeds} seeds from {config.seed}; {config.steps:,} steps; `optimum "
                "p_g*`: the mass there by Eq. 23; weakest: relative to its mass of p_g*",
            ),
            np.asarray(Image.open(picture).convert("RGB")) if rows and picture.exists() else None,
        )
    ]


def _config(bench: Bench) -> RingConfig:
    """`configs/toy2d.py`, its variant `smoke` where everything is shrunk."""
    return ring.validate_ring(
        bench.get_config("toy2d", bench.sized(quick="smoke", night="", full=""))
    )


def _picture(bench: Bench) -> Path:
    """Where the cell's picture lies: another size has another one."""
    made = digest(dataclasses.asdict(_config(bench)))
    return bench.out / "runs" / f"figure3-{made}" / "figure3.png"


def draw_figure(
    config: RingConfig, rows: list[ring.Row], found: dict[str, Measured], path: Path
) -> None:
    """Draw Figure 3: data, p_g* and, per objective and gamma, generated points over D's contour.

    Points and D are those of the first seed; the percentages are means over seeds.
    """
    mixture = ring.make_mixture(config)
    columns, count = len(config.gammas) + 1, len(found)
    figure = Figure(figsize=(2.9 * columns, 2.9 * (count + 1) + 0.4), layout="constrained")
    axes = figure.subplots(count + 1, columns, squeeze=False)
    figure.suptitle(
        "Known anomalies are subtracted from what the generator generates\n"
        "red: the abnormal mode (within the dashed circle) and the mass on it",
        fontsize=13,
    )
    _draw_data(axes[0, 0], config, mixture)
    for axis, gamma in zip(axes[0, 1:], config.gammas, strict=True):
        _draw_optimum(axis, mixture, gamma)
    for line, (objective, result) in zip(axes[1:], found.items(), strict=True):
        for index, axis in enumerate(line[1:]):
            row = next(
                r for r in rows if (r.objective, r.gamma) == (objective, config.gammas[index])
            )
            _draw_result(axis, mixture, result, index, row)
    for axis, objective in zip(axes[1:, 0], found, strict=True):
        _draw_bars(axis, [row for row in rows if row.objective == objective])
    scale = ScalarMappable(Normalize(0.0, 1.0), _D_COLORS)
    bar = figure.colorbar(
        scale, ax=axes[1:, -1], label="D(x), probability of normal", shrink=0.7, aspect=30
    )
    bar.set_ticks([0.0, 0.25, 0.5, 0.75, 1.0])
    pictures.save_figure(path, figure)


def _frame(axis: Axes, mixture: ring.Mixture, title: str) -> None:
    reach = np.abs(mixture.centers).max() + 5.0 * mixture.std
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.add_patch(
        Circle(
            tuple(mixture.centers[-1]),
            ring.MODE_RADIUS * mixture.std,
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


def _scatter(axis: Axes, mixture: ring.Mixture, points: ring.Points) -> None:
    modes = ring.nearest_modes(points, mixture)
    abnormal = len(mixture.centers) - 1
    for color, chosen in (
        (_OUTSIDE, modes > abnormal),
        (_NORMAL, modes < abnormal),
        (_ABNORMAL, modes == abnormal),
    ):
        x, y = points[chosen].T
        axis.scatter(x, y, s=3, color=color, alpha=0.6, linewidths=0)


def _draw_data(axis: Axes, config: RingConfig, mixture: ring.Mixture) -> None:
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


def _draw_optimum(axis: Axes, mixture: ring.Mixture, gamma: float) -> None:
    points, mass = ring.optimal_mass(mixture, gamma, ring.GRID)
    shape = (ring.GRID, ring.GRID)
    x, y = points.T.reshape(2, *shape)
    peak = np.linspace(0.0, 1.05 * mass.max(), 12)[1:]
    _frame(axis, mixture, rf"optimum $p_g^*$, $\gamma$ = {gamma:g}")
    axis.contourf(x, y, mass.reshape(shape), levels=peak, cmap="Blues")
    abnormal = ring.mode_shares(points, mixture, mass)[-2]
    _caption(axis, f"{abnormal:.1%}")


def _draw_result(
    axis: Axes, mixture: ring.Mixture, result: Measured, index: int, row: ring.Row
) -> None:
    points, _ = ring.make_grid(mixture, ring.GRID)
    x, y = points.T.reshape(2, ring.GRID, ring.GRID)
    d = (1.0 / (1.0 + np.exp(-result.logits[index].astype(np.float64)))).reshape(
        ring.GRID, ring.GRID
    )
    name = row.objective.replace("equation_", "Eq. ")
    _frame(axis, mixture, rf"generated, {name}, $\gamma$ = {row.gamma:g}")
    axis.contourf(x, y, d, levels=np.linspace(0.0, 1.0, 21), cmap=_D_COLORS)
    axis.contour(x, y, d, levels=np.linspace(0.1, 0.9, 9), colors="0.55", linewidths=0.4)
    _scatter(axis, mixture, result.points[index, :_SHOWN])
    _caption(axis, f"{row.abnormal:.1%}")


def _draw_bars(axis: Axes, rows: list[ring.Row]) -> None:
    place = np.arange(len(rows))
    share = [100.0 * row.abnormal for row in rows]
    axis.bar(
        place,
        share,
        yerr=[100.0 * row.abnormal_std for row in rows],
        width=0.55,
        color=_ABNORMAL,
        capsize=3,
        label="generated",
    )
    optimum = [100.0 * row.optimum for row in rows]
    axis.scatter(place, optimum, marker="_", s=700, color="black", label="$p_g^*$", zorder=3)
    for x, row in enumerate(rows):
        height = 100.0 * max(row.abnormal + row.abnormal_std, row.optimum)
        axis.text(x, height + 0.6, f"{row.abnormal:.2%}", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(place, [rf"$\gamma$ = {row.gamma:g}" for row in rows])
    axis.set_ylim(0.0, 1.25 * max(*share, *optimum) + 1.0)
    axis.set_ylabel("% of what is generated")
    axis.set_box_aspect(1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"abnormal mass, {rows[0].objective.replace('equation_', 'Eq. ')}", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
