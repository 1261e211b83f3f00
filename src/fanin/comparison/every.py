"""A study's whole answer: a comparison for each key that was swept."""

import math
from collections.abc import Iterator, Sequence

import pandas

from fanin.comparison.core import compare_runs
from fanin.comparison.result import Comparison
from fanin.errors import ConfigError
from fanin.noise import factors_of

MOST_LEVELS = 24  # of a key that is compared: each with each


def compare_every(
    runs: pandas.DataFrame, *, swept: Sequence[str], metric: str, direction: str, classes: int
) -> list[Comparison]:
    """One for each of the keys `swept` that has several values and can be compared; none of a search, whose points
    have no partners, nor where every variant ran once."""
    there = [key for key in swept if key in runs]
    levels = {key: runs[key].nunique() for key in factors_of(there)}
    keys = [key for key, count in levels.items() if count > 1]
    if not keys or max(levels.values()) > MOST_LEVELS or metric not in runs:
        return []
    points = len(runs[keys].drop_duplicates())
    if 2 * points < math.prod(levels[key] for key in keys) or len(runs) <= points:
        return []
    others = [key for key in there if key in keys or key not in levels]
    return list(_compared(runs, keys, others, metric=metric, direction=direction, classes=classes))


def _compared(
    runs: pandas.DataFrame, keys: Sequence[str], others: Sequence[str], *, metric: str, direction: str, classes: int
) -> Iterator[Comparison]:
    for key in keys:
        within = [other for other in others if other != key]
        try:
            yield compare_runs(runs, by=key, metric=metric, direction=direction, within=within, classes=classes)
        except ConfigError:  # fewer than two of its values have finished runs
            continue
