"""Writes metric points into MLflow's SQLite file itself, for a twentieth of the CPU time of MLflow's client.

A usual run has 500 points: 60 ms through the client's object-relational layers, more than all the rest of a
run's bookkeeping. The rows are those the client would have written (the tests compare them), in versions of
the tables that we know; `accepts` says no to all others.
"""

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from fanin import schema
from fanin.points import Point

BUSY = 20.0  # s to wait for another writer
LARGEST = 1.7976931348623157e308  # what MLflow stores for infinity
COLUMNS = "(key, value, timestamp, step, is_nan, run_uuid) values (:key, :value, :time, :step, :nan, :run)"
INSERT = f"insert or ignore into metrics {COLUMNS}"
LATEST = f"""
insert into latest_metrics {COLUMNS}
on conflict (key, run_uuid) do update
set value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
where (excluded.step, excluded.timestamp, excluded.value)
    > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)
"""
ACTIVE = "select count(*) from runs where run_uuid = ? and lifecycle_stage = 'active'"


def accepts(database: Path) -> bool:
    """Whether the database's tables are as this module knows them."""
    with closing(_connect(database)) as connection:
        return schema.revisions(connection) <= schema.TESTED_REVISIONS


def write(database: Path, run: str, points: Sequence[Point]) -> bool:
    """Add points to a run in one transaction; those it has already stay as they are. False, and nothing is
    written, if there is no such run or it is deleted. Raises sqlite3.Error."""
    rows = [row(point, run) for point in points]
    with closing(_connect(database)) as connection, connection:
        connection.execute("begin immediate")
        active = connection.execute(ACTIVE, [run]).fetchone() == (1,)
        if active:
            connection.executemany(INSERT, rows)
            connection.executemany(LATEST, rows)
    return active


def row(point: Point, run: str) -> dict[str, object]:
    """As MLflow stores it: NaN is 0 with a mark, infinity the largest double."""
    nan = math.isnan(point.value)
    value = 0.0 if nan else max(-LARGEST, min(LARGEST, point.value))
    return {"run": run, "key": point.key, "step": point.step, "time": point.time, "value": value, "nan": nan}


def _connect(database: Path) -> sqlite3.Connection:
    """To a file that exists: an empty one in its place would be no MLflow database."""
    return sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=BUSY)
