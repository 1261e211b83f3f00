"""A level by itself: its mean and its interquartile mean, how often it diverged, whether it may be the
best."""

import math

import numpy
import pandas
from numpy.typing import NDArray

from fanin.comparison.aggregates import expected_best, iqm
from fanin.comparison.best_set import best_set
from fanin.comparison.contrasts import Rules
from fanin.comparison.intervals import BOOTSTRAPPED, expanded, student
from fanin.comparison.pairing import Scores, in_common

Array = NDArray[numpy.float64]

RESAMPLES = 1999
COLUMNS = ["level", "mean", "low", "high", "iqm", "iqm_low", "iqm_high", "n", "runs"]
COLUMNS += ["diverged", "divergence", "unfinished", "p_best", "best"]


def describe(runs: pandas.DataFrame, scores: Scores, rules: Rules) -> pandas.DataFrame:
    """A row per level, the best mean first.

    mean: over replicates, then blocks, with Student's interval over replicates; iqm: over all runs, with the
    percentile bootstrap's, from 8 replicates on; n: replicates; runs: complete ones, of which `diverged`
    diverged (`divergence`: their share); unfinished: left out; p_best: of being a best one, and best: is
    that left open?
    """
    p_best = best_set(-rules.sign * in_common(scores))
    rows = []
    for level, name in enumerate(scores.levels):
        own = runs[runs[scores.by] == name]
        complete = own[own["complete"]]
        values = scores.of_level(level)
        low, high = _around(float(scores.means[level]), values, rules)
        middle_low, middle_high = _iqm_interval(scores.values[level], rules)
        rows.append(
            {
                "level": name,
                "mean": scores.means[level],
                "low": low,
                "high": high,
                "iqm": float(iqm(_finite(scores.values[level]))),
                "iqm_low": middle_low,
                "iqm_high": middle_high,
                "n": len(values),
                "runs": len(complete),
                "diverged": int(complete["diverged"].sum()),
                "divergence": complete["diverged"].mean(),
                "unfinished": len(own) - len(complete),
                "p_best": p_best[level],
                "best": bool(p_best[level] > rules.alpha),
            }
        )
    table = pandas.DataFrame(rows, columns=COLUMNS)
    table = table.sort_values("mean", ascending=rules.sign < 0, kind="stable", ignore_index=True)
    table.index += 1  # the rank
    return table


def best_of(runs: pandas.DataFrame, scores: Scores, rules: Rules) -> pandas.DataFrame:
    """What n tries are expected to give: level, n, tries (`point`, the mean over its replicates, where other
    keys vary; else `run`), seconds (that n tries take) and expected, the value of the best of them."""
    tables = []
    for level, name in enumerate(scores.levels):
        values = scores.values[level]
        points = [numpy.nanmean(block) for block in values if numpy.isfinite(block).any()]
        tries = numpy.array(points) if scores.within else _finite(values)
        best = rules.sign * expected_best(rules.sign * tries)
        cost = runs.loc[runs["complete"] & (runs[scores.by] == name), "seconds"].sum() / len(tries)
        n = numpy.arange(1, len(tries) + 1)
        kind = "point" if scores.within else "run"
        tables.append(pandas.DataFrame({"level": name, "n": n, "tries": kind, "seconds": n * cost, "expected": best}))
    return pandas.concat(tables, ignore_index=True)


def _around(mean: float, values: Array, rules: Rules) -> tuple[float, float]:
    interval = student(values[None], confidence=rules.confidence)
    half = (interval.high[0] - interval.low[0]) / 2
    return mean - half, mean + half


def _iqm_interval(values: Array, rules: Rules) -> tuple[float, float]:
    """Replicates are drawn, each with all its blocks."""
    values = values[:, numpy.isfinite(values).all(axis=0)]
    n = values.shape[1]
    if n < BOOTSTRAPPED:
        return math.nan, math.nan
    drawn = numpy.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    resampled = values[:, drawn].transpose(1, 0, 2).reshape(RESAMPLES, -1)
    means = iqm(resampled)
    tail = (1 - expanded(rules.confidence, n=n)) / 2
    low, high = numpy.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _finite(values: Array) -> Array:
    return values[numpy.isfinite(values)]
