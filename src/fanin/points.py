"""From spool records to metric points.

The same records always give the same points, timestamps included. That makes shipping them twice harmless,
since MLflow's SQL stores keep one of equal points.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fanin.description import allowed
from fanin.spool import Digest, Record

STEP = {"pretrain": "step", "epoch": "epoch"}  # kinds of records that are points of curves, and their field for it
BETTER = {"accuracy": max, "loss": min}  # by the last part of a metric's key


@dataclass(frozen=True)
class Point:
    key: str
    value: float
    time: int  # unix ms
    step: int


def curve_points(records: Iterable[Record]) -> list[Point]:
    """The metrics of epochs, and of an initializer's own steps, which its curves count from their start."""
    return [
        Point(allowed(key), float(value), record["time"], record[STEP[record["kind"]]])
        for record in records
        if record["kind"] in STEP
        for key, value in record["metrics"].items()
    ]


def best_points(history: Digest) -> list[Point]:
    """For each loss and accuracy its best finite value as `best <key>`, at the epoch and time it was reached.
    Meant for runs that have come to their end."""
    best: dict[str, Point] = {}
    for point in curve_points(history.epochs):
        better = BETTER.get(point.key.rsplit("/", 1)[-1])
        if better is None or not math.isfinite(point.value):
            continue
        rival = best.setdefault(point.key, point)
        if better(point.value, rival.value) != rival.value:
            best[point.key] = point
    return [Point(f"best {key}", point.value, point.time, point.step) for key, point in best.items()]


def end_points(records: Iterable[Record], history: Digest) -> list[Point]:
    """The metrics of the end record, at its step; with the time of the first end that had them.

    An interrupted end that was shipped, then repeated by a resumed run, so gives the same points again.
    """
    assert history.end is not None
    first: dict[tuple[str, int], int] = {}
    for record in records:
        if record["kind"] == "end":
            for key in record.get("metrics") or {}:
                first.setdefault((key, _step(record, history)), record["time"])
    step = _step(history.end, history)
    metrics = history.end.get("metrics") or {}
    return [Point(allowed(key), float(value), first[key, step], step) for key, value in metrics.items()]


def _step(end: Record, history: Digest) -> int:
    """Where a record names no step: the last epoch, or for a study the attempt."""
    if end.get("step") is not None:
        return end["step"]
    return history.attempts if history.last_epoch is None else history.last_epoch
