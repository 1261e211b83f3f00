"""What the criteria of a study are judged by: its runs with their params, and the points of the metrics they name.

At the end of a sweep they come from the spools, later from the tracking store; the same tables either way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas

from fanin import spool
from fanin.criteria.values import same
from fanin.description import flatten
from fanin.folders import Folder
from fanin.leaderboard import finished

POINTS = ["run_id", "metric", "step", "value"]


@dataclass(frozen=True)
class Records:
    """`runs`: a row per run with run_id, variant, replicate, complete, diverged and the params; `points`: run_id,
    metric, step, value."""

    runs: pandas.DataFrame
    points: pandas.DataFrame

    def select(self, where: Mapping[str, tuple[Any, ...]]) -> pandas.DataFrame:
        """The runs of which every param in `where` has one of its values; none for a param that no run has."""
        table = self.runs
        for key, values in where.items():
            column = table[key].astype(object) if key in table else pandas.Series(None, table.index, dtype=object)
            fits = [any(same(cell, value) for value in values) for cell in column]
            table = table[pandas.Series(fits, table.index, dtype=bool)]  # a bare empty list would be no columns
        return table


def from_store(runs: pandas.DataFrame, curves: pandas.DataFrame) -> Records:
    """From the tables that fanin.runs and fanin.curves return."""
    return Records(finished(runs), curves[POINTS])


def from_spools(folders: Iterable[Path], patterns: Iterable[str]) -> Records:
    """From the folders of runs; `patterns` name the metrics that are wanted."""
    wanted = tuple(patterns)
    runs: list[dict[str, Any]] = []
    points: list[tuple[str, str, int, float]] = []
    for path in folders:
        spec = Folder(path).spec()
        digest = spool.digest(spool.read(path / "spool.jsonl")[0])
        end = digest.end or {"status": "RUNNING", "metrics": {}, "step": 0}
        records = [(one["epoch"], one["metrics"]) for one in digest.epochs]
        records.append((end.get("step", 0), end.get("metrics", {})))
        found = [
            (spec["key"], metric, step, value)
            for step, metrics in records
            for metric, value in metrics.items()
            if any(fnmatchcase(metric, pattern) for pattern in wanted)
        ]
        diverged = any(metrics.get("diverged") for _, metrics in records)
        about = {"run_id": spec["key"], "variant": spec["variant"], "replicate": spec["replicate"]}
        about |= {"status": end["status"], "reason": end.get("reason"), "diverged": diverged}
        runs.append(flatten(spec["config"], spec["choices"]) | about)
        points += found
    columns = ["run_id", "variant", "replicate", "status", "reason", "diverged"]
    table = pandas.DataFrame(runs, columns=None if runs else columns)
    return Records(finished(table), pandas.DataFrame(points, columns=POINTS))
