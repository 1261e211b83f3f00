"""The numbers behind the plots, as plain data for the page's script."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy
import pandas
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy import stats

from fanin.leaderboard import CONFIDENCE, tabulate
from fanin.report import budget, weights
from fanin.report.material import Material
from fanin.report.series import curves, layers, number, numbers

FEW = 12  # values of a number that are still the levels of a grid


def draw(material: Material) -> dict[str, Any] | None:
    """All plots of a study; None before it has runs."""
    if material.runs.empty:
        return None
    began = material.runs.groupby("place")["start"].min()
    axes = [axis(material.board[key], key, began=began) for key in material.by]
    rows = variants(material)
    return {
        "metric": material.about.metric,
        "direction": material.about.direction,
        "axes": axes,
        "variants": rows,
        "decimals": decimals(material.board["mean"]),
        "grids": grids(axes, len(material.board)),
        "interval": intervals(int(material.runs.groupby("place").size().max())),
        "curves": curves(material),
        "layers": layers(material),
        "budget": budget.draw(axes, rows, direction=material.about.direction),
        "weights": weights.draw(material.weights),
    }


def decimals(means: pandas.Series) -> int | None:
    """Of a cell of the heat map; None where so many would not say enough."""
    return 3 if 0.1 <= means.abs().max() < 10 else None


def axis(values: pandas.Series, key: str, *, began: pandas.Series) -> dict[str, Any]:
    """A swept key over the variants: `value` is a number, or an index into the `names` of its choices.

    A number with few values has names, too, and `level`, the index into them: it can span a grid. Choices are
    in the order in which their first runs began, which in a grid is the order they were written in.
    """
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        levels = sorted(values.dropna().unique())
        names = [f"{level:.4g}" for level in levels] if len(levels) <= FEW else None
        index = [levels.index(value) if names and value in levels else None for value in values]
        log = bool(levels and levels[0] > 0 and levels[-1] / levels[0] >= 30)
        value = numbers(values.to_numpy(dtype=float))
        return {"key": key, "number": True, "log": log, "names": names, "value": value, "level": index}
    chosen = [None if pandas.isna(value) else name(value) for value in values.astype(object)]
    first = pandas.Series(began.to_numpy()).groupby(chosen).min()
    names = sorted(first.index, key=lambda text: (first[text], text))
    index = [None if text is None else names.index(text) for text in chosen]
    return {"key": key, "number": False, "log": False, "names": names, "value": index, "level": index}


def name(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool | numpy.bool_):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def title(row: pandas.Series, by: Sequence[str]) -> str:
    """A variant in a few words: its choices, and its numbers with the last part of their key."""
    there = [(key, row[key]) for key in by if not pandas.isna(row[key])]
    words = [value if isinstance(value, str) else f"{key.split('.')[-1]}={name(value)}" for key, value in there]
    return " · ".join(words) or "default"


def variants(material: Material) -> list[dict[str, Any]]:
    """The rows of the leaderboard, with the value of each of their runs."""
    metric = material.about.metric
    groups, values = dict(list(material.runs.groupby("place"))), texts(material.board)
    rows = []
    for place, (_, row) in enumerate(material.board.iterrows()):
        group = groups[place]
        whole = group[group["complete"]]
        rows.append(
            {
                "name": title(row, material.by),
                "mean": number(row["mean"]),
                "low": number(row["low"]),
                "high": number(row["high"]),
                "text": values[place],
                "runs": [value for value in numbers(whole[metric]) if value is not None],
                "last": number(group[metric].mean()),
                "seconds": number(group["seconds"].mean()),
                "note": _note(group),
            }
        )
    return rows


def texts(board: pandas.DataFrame) -> list[str]:
    """The value of each variant as the leaderboard writes it."""
    head, *rows = tabulate(board)
    return [row[head.index(board.attrs["metric"])] for row in rows]


def _note(group: pandas.DataFrame) -> str | None:
    """Why its runs are not complete, and that they diverged."""
    open_ = group[~group["complete"]]
    reasons = open_["reason"].astype(object).where(open_["reason"].notna(), open_["status"].astype(str).str.lower())
    notes = list(dict.fromkeys(map(str, reasons)))[:2]
    if group["diverged"].any():
        notes.append(f"{int(group['diverged'].sum())} of {len(group)} runs diverged")
    return "; ".join(notes) or None


def grids(axes: Sequence[dict[str, Any]], count: int) -> list[tuple[int, int]]:
    """The pairs of axes of a study that is a grid, at least half of it there, as (across, down).

    The points of a search are none: a mean over what it happened to try would say little of a cell.
    """
    sizes = [len(axis["names"] or ()) for axis in axes]
    if not all(sizes) or count < 0.5 * math.prod(sizes):
        return []
    pairs = [(i, j) for i, j in combinations(range(len(axes)), 2) if sizes[i] > 1 and sizes[j] > 1]
    return [(i, j) if sizes[i] >= sizes[j] else (j, i) for i, j in pairs]


def intervals(most: int) -> list[float]:
    """What half of the interval is in standard deviations, by the number of replicates from 0 on."""
    quantiles = [stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) / math.sqrt(n) for n in range(2, most + 1)]
    return [0.0, 0.0, *quantiles]
