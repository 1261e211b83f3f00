"""Points of many runs as columns of numbers. Runs and metrics are numbered: a million points take 32 MB."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy

LARGEST = 1.7976931348623157e308  # what MLflow's SQL stores keep instead of infinity
TYPES = (numpy.int32, numpy.int32, numpy.int64, numpy.float64, numpy.int64)
Columns = tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray]


@dataclass(frozen=True)
class History:
    """A point is the same place in all columns; `run` and `key` count from 0."""

    run: numpy.ndarray
    key: numpy.ndarray
    step: numpy.ndarray
    value: numpy.ndarray
    time: numpy.ndarray  # unix ms

    def __len__(self) -> int:
        return len(self.value)


def gather(parts: Iterable[Columns]) -> History:
    """The points of all parts, as they were logged: the infinities are back, by run, metric and step, and each
    step once. Of two values for one step the later one counts."""
    columns = [numpy.concatenate(column) for column in zip(_columns(()), *parts, strict=True)]
    run, key, step, value, time = columns
    value[value >= LARGEST] = numpy.inf
    value[value <= -LARGEST] = -numpy.inf
    order = numpy.lexsort((value, time, step, key, run))
    last = numpy.ones(len(order), dtype=bool)
    for column in columns:
        column[:] = column[order]
    last[:-1] = (run[1:] != run[:-1]) | (key[1:] != key[:-1]) | (step[1:] != step[:-1])
    return History(*(columns if last.all() else (column[last] for column in columns)))


def numbered(rows: Sequence[tuple], runs: dict[str, int], keys: dict[str, int]) -> Columns:
    """Columns of rows of (run, key, step, value, time); the value is None for NaN."""
    if not rows:
        return _columns(())
    run, key, *rest = zip(*rows, strict=True)
    return _columns(([runs[name] for name in run], [keys[name] for name in key], *rest))


def _columns(values: Sequence[Sequence]) -> Columns:
    filled = values or ((),) * len(TYPES)
    run, key, step, value, time = (numpy.array(column, dtype=kind) for column, kind in zip(filled, TYPES, strict=True))
    return run, key, step, value, time
