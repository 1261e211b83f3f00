"""The numbers over epochs and layers, as plain data for the page's script.

A report stays small whatever the study's size: long curves are thinned to MOST_STEPS steps, and statistics of
layers to MOST_VALUES values, by leaving out steps first and the worst variants then.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from fanin.chance import chance
from fanin.report.material import Material

MOST_STEPS = 150
MOST_VALUES = 300_000
FEWEST_STEPS = 4
NOT_CURVES = {"diverged", "seconds"}
PRETRAINING = "pretrain/"  # whose steps are not epochs of training
FIRST = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")
PER_LAYER = (
    *("signal_forward_gain", "signal_backward_gain", "grad_norm", "update_ratio"),
    *("activation_mean", "activation_std", "activation_dead", "activation_saturated"),
    *("weight_std", "weight_absmax", "weight_spectral_norm", "weight_stable_rank"),
    *("signal_batch_backward_gain", "activation_drift", "grad_covariate_shift", "grad_covariate_shift_cosine"),
)
PART = re.compile(r"\d+|\D+")
Array = NDArray[numpy.float64]


def curves(material: Material) -> dict[str, Any] | None:
    """Each run's value at each step, for each metric of which a run has more than one; None if none has."""
    table = material.curves
    counts = table.groupby(["metric", "run_id"], observed=True).size().groupby("metric", observed=True).max()
    names = [metric for metric in counts[counts > 1].index if metric not in NOT_CURVES]
    if not names:
        return None
    names.sort(key=lambda metric: (FIRST.index(metric) if metric in FIRST else len(FIRST), metric))
    steps = thinned(table.loc[table["metric"].isin(names), "step"].unique(), MOST_STEPS)
    runs = material.runs
    cells = {metric: matrix(table[table["metric"] == metric], runs["run_id"], steps) for metric in names}
    seconds = matrix(table[table["metric"] == "seconds"], runs["run_id"], steps)
    last = table.loc[~table["metric"].str.startswith(PRETRAINING), "step"].max()
    epochs = int((steps <= last).sum())  # an initializer's own curves may have more
    lost = _lost(table, runs, steps[:epochs])
    return {
        "steps": [int(step) for step in steps],
        "epochs": epochs,
        "runs": [{"v": int(v), "lost": at} for v, at in zip(runs["place"], lost, strict=True)],
        "values": {metric: [numbers(row) for row in values] for metric, values in cells.items()},
        "seconds": _mean_by_place(seconds, runs["place"]) if numpy.isfinite(seconds).any() else None,
        "guess": {m: g for m in names if (g := guess(m, material.classes)) is not None},
        "first": next((m for m in (material.about.metric, *FIRST) if m in names), names[0]),
    }


def guess(metric: str, classes: int) -> float | None:
    """What a run that diverged counts as, as in the leaderboard."""
    return None if metric.startswith(PRETRAINING) else chance(metric, classes=classes)


def _lost(table: pandas.DataFrame, runs: pandas.DataFrame, steps: Array) -> list[int | None]:
    """The index into `steps` from which on each run is diverged; None for those that are not."""
    gone = table[(table["metric"] == "diverged") & (table["value"] == 1)].groupby("run_id")["step"].min()
    found: list[int | None] = []
    for run, diverged in zip(runs["run_id"], runs["diverged"], strict=True):
        at = int(numpy.searchsorted(steps, gone[run])) if run in gone.index else len(steps) - 1
        found.append(min(at, len(steps) - 1) if diverged else None)
    return found


def _mean_by_place(values: Array, places: pandas.Series) -> list[list[float | None]]:
    frame = pandas.DataFrame(values).groupby(places.to_numpy()).mean()
    return [numbers(row) for row in frame.to_numpy()]


def layers(material: Material) -> dict[str, Any] | None:
    """The median over a variant's runs of each statistic: by step and layer, and at the end of each run."""
    table = material.layers
    statistics = [key for key in PER_LAYER if key in table]
    if table.empty or not statistics:
        return None
    names = [str(layer) for layer in in_depth_order(table["layer"].unique())]
    steps, count = _affordable(table, statistics, variants=len(material.board), layers=len(names))
    last = table[table["step"] == table.groupby("run_id")["step"].transform("max")]
    after = last[last["step"] > 0].groupby(["place", "layer"], observed=True)[statistics].median()
    kept = table[table["step"].isin(steps) & (table["place"] < count)]
    over = kept.groupby(["place", "step", "layer"], observed=True)[statistics].median()
    places = range(len(material.board))
    own = [sorted(names.index(layer) for layer in set(table.loc[table["place"] == v, "layer"])) for v in places]
    whole = pandas.MultiIndex.from_product([range(count), steps, names])
    ends = pandas.MultiIndex.from_product([places, names])
    shape = (count, len(steps), len(names))
    return {
        "names": names,
        "steps": [int(step) for step in steps],
        "of": own if any(len(one) < len(names) for one in own) else None,
        "over": {key: nested(over[key].reindex(whole).to_numpy().reshape(shape)) for key in statistics},
        "after": {key: nested(after[key].reindex(ends).to_numpy().reshape(-1, len(names))) for key in statistics},
        "left_out": len(material.board) - count,
    }


def _affordable(table: pandas.DataFrame, statistics: Sequence[str], *, variants: int, layers: int) -> tuple[Array, int]:
    """The steps and the number of best variants that fit into MOST_VALUES."""
    size = layers * len(statistics)
    steps = thinned(table["step"].unique(), max(FEWEST_STEPS, MOST_VALUES // (size * variants)))
    return steps, max(1, min(variants, MOST_VALUES // (size * len(steps))))


def in_depth_order(layers: Iterable[str]) -> list[str]:
    """As the names tell it: numbered parts by number, a stem first, a head last."""
    heads, stems = ("fc", "head", "heads", "classifier"), ("conv1", "stem", "features")
    natural = sorted(layers, key=lambda name: [(int(p), "") if p.isdigit() else (0, p) for p in PART.findall(name)])
    return sorted(natural, key=lambda name: (name.split(".")[0] in heads) - (name.split(".")[0] in stems))


def thinned(steps: Iterable[int], most: int) -> Array:
    """At most so many of the steps, evenly chosen, with the first and the last."""
    whole = numpy.sort(numpy.asarray(list(steps)))
    if len(whole) <= most:
        return whole
    return whole[numpy.unique(numpy.linspace(0, len(whole) - 1, most).round().astype(int))]


def matrix(points: pandas.DataFrame, runs: pandas.Series, steps: Array) -> Array:
    """One row per run, one column per step, NaN where there is no point."""
    wide = points.pivot(index="run_id", columns="step", values="value")
    return wide.reindex(index=runs, columns=steps).to_numpy(dtype=float)


def numbers(values: Iterable[float]) -> list[float | None]:
    """Five digits of each; None for NaN and infinities, which JSON does not have."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def number(value: float) -> float | None:
    return numbers([value])[0]


def nested(values: Array) -> list:
    return numbers(values) if values.ndim == 1 else [nested(part) for part in values]
