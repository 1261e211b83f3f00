"""The key figures as PNG files, for MLflow's page of the study, slides and papers; of the same numbers as the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

MOST_ROWS, MOST_LINES, MOST_CELLS = 25, 8, 400
COLOURS = ("#0e92fd", "#c53100", "#2c7762", "#9040ba", "#a69342", "#e960af", "#7c251c", "#4a3e6e")  # as page.css
SOFT, INK = "#667080", "#1a1e24"
DPI = 150
Array = NDArray[numpy.float64]


def write(drawn: Mapping[str, Any], folder: Path) -> list[Path]:
    """A file for each figure that the study has material for; `drawn` is what the page's script gets."""
    paths = []
    for name, figure in {"leaderboard": leaderboard, "curves": curves, "grid": grid, "layers": layers}.items():
        if picture := figure(drawn):
            picture.savefig(folder / f"{name}.png", dpi=DPI)
            paths.append(folder / f"{name}.png")
    return paths


def leaderboard(drawn: Mapping[str, Any]) -> Figure | None:
    """Replicates, mean and interval of each variant, the best on top."""
    rows = [one for one in drawn["variants"] if one["mean"] is not None][:MOST_ROWS]
    if not rows:
        return None
    figure, axes = _figure(8, 1.1 + 0.27 * len(rows))
    for place, one in enumerate(rows):
        axes.plot(one["runs"], [place + 0.25] * len(one["runs"]), ".", color=COLOURS[0], alpha=0.45, markersize=4)
        if one["low"] is not None:
            axes.plot([one["low"], one["high"]], [place, place], color=COLOURS[0], linewidth=2)
        axes.plot(one["mean"], place, "o", color=COLOURS[0], markersize=6)
    axes.set_yticks(range(len(rows)), [_short(one["name"]) for one in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#e9ecf0")
    left = len(drawn["variants"]) - len(rows)
    axes.set_xlabel(f"{drawn['metric']}: runs, mean, 95 % interval" + (f" ({left} more variants)" if left else ""))
    return figure


def curves(drawn: Mapping[str, Any]) -> Figure | None:
    """The metric over the epochs: means and intervals of the best variants."""
    found = drawn["curves"]
    if not found:
        return None
    figure, axes = _figure(8, 4.5)
    metric, epochs = found["first"], found["epochs"]
    steps = numpy.array(found["steps"][:epochs])
    values = numpy.array(found["values"][metric], dtype=float)[:, :epochs]
    guess = found["guess"].get(metric)
    for i, run in enumerate(found["runs"]):
        if run["lost"] is not None and guess is not None:
            values[i, run["lost"] :] = guess
    places = numpy.array([run["v"] for run in found["runs"]])
    half = numpy.array(drawn["interval"])
    for place, one in enumerate(drawn["variants"][:MOST_LINES]):
        _band(axes, steps, values[places == place], half, colour=COLOURS[place], label=_short(one["name"]))
    if metric.endswith("loss"):
        axes.set_yscale("log")
    axes.grid(color="#e9ecf0")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        title=f"the best {MOST_LINES}" * (len(drawn["variants"]) > MOST_LINES) or None,
    )
    return figure


def _band(axes: Axes, steps: Array, values: Array, half: Array, *, colour: str, label: str) -> None:
    there = numpy.isfinite(values).sum(axis=0)
    known = there > 0
    values, steps, there = values[:, known], steps[known], there[known]
    means = numpy.nanmean(values, axis=0)
    axes.plot(steps, means, color=colour, linewidth=1.8, label=label)
    if len(values) > 1:
        spread = numpy.sqrt(numpy.nansum((values - means) ** 2, axis=0) / numpy.maximum(there - 1, 1)) * half[there]
        axes.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.14, linewidth=0)


def grid(drawn: Mapping[str, Any]) -> Figure | None:
    """The mean of each cell of the first grid."""
    if not drawn["grids"]:
        return None
    across, down = (drawn["axes"][i] for i in drawn["grids"][0])
    sums = numpy.zeros((len(down["names"]), len(across["names"])))
    counts = numpy.zeros_like(sums)
    for one, row, column in zip(drawn["variants"], down["level"], across["level"], strict=True):
        if one["mean"] is not None and row is not None and column is not None:
            sums[row, column] += one["mean"]
            counts[row, column] += 1
    if sums.size > MOST_CELLS or not counts.any():
        return None
    cells = numpy.where(counts > 0, sums / numpy.maximum(counts, 1), numpy.nan)
    figure, axes = _figure(2.5 + 0.9 * cells.shape[1], 1.4 + 0.5 * cells.shape[0])
    axes.imshow(cells, cmap="Blues", aspect="auto")
    middle = numpy.nanmin(cells) + 0.6 * (numpy.nanmax(cells) - numpy.nanmin(cells))
    for (row, column), value in numpy.ndenumerate(cells):
        if numpy.isfinite(value):
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color="white" if value > middle else INK)
    axes.set_xticks(range(cells.shape[1]), [_short(name, 14) for name in across["names"]])
    axes.set_yticks(range(cells.shape[0]), [_short(name, 24) for name in down["names"]])
    axes.set_xlabel(across["key"])
    axes.set_ylabel(down["key"])
    axes.set_title(f"{drawn['metric']}, mean", fontsize=10, color=INK)
    axes.tick_params(length=0)
    return figure


def layers(drawn: Mapping[str, Any]) -> Figure | None:
    """How each layer passes the signal on, and the gradient back: at initialization and after training."""
    found = drawn["layers"]
    keys = [key for key in ("signal_forward_gain", "signal_backward_gain") if found and key in found["after"]]
    if not keys or found["steps"][0] != 0:
        return None
    figure = Figure(figsize=(9, 3.2 * len(keys)), layout="constrained")
    for row, key in zip(figure.subplots(len(keys), 2, sharey="row", squeeze=False), keys, strict=True):
        sides = {"at initialization": [steps[0] for steps in found["over"][key]], "after training": found["after"][key]}
        for axes, (when, values) in zip(row, sides.items(), strict=True):
            for place, one in enumerate(drawn["variants"][: min(MOST_LINES, len(values))]):
                known = [value for value in values[place] if value is not None and value > 0]
                axes.plot(range(1, len(known) + 1), known, ".-", color=COLOURS[place], label=_short(one["name"]))
            axes.axhline(1, color=SOFT, linestyle=":", linewidth=1)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_title(f"{key.split('_', 1)[1].replace('_', ' ')} {when}", fontsize=10, color=INK)
            _plain(axes)
    figure.supxlabel("layer", fontsize=9, color=SOFT)
    figure.axes[0].legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.set_axisbelow(True)


def _short(text: str, most: int = 36) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
