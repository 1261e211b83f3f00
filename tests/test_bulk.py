"""Our rows in MLflow's tables, against those that MLflow writes itself."""

import math
import sqlite3
from pathlib import Path

import pytest
from recorded import copy_database, new_database, stored

from fanin import bulk, schema
from fanin.points import Point
from fanin.tracking import Tracker

COLUMNS = "key, value, timestamp, step, is_nan, run_uuid, typeof(value), typeof(step), typeof(is_nan)"
METRICS = f"select {COLUMNS} from metrics order by key, step, value"
LATEST = f"select {COLUMNS} from latest_metrics order by key"
INFINITE = {"a": math.nan, "b": math.inf, "c": -math.inf}
EXTREME = {"a": 1.7e308, "b": 5e-324, "c": -0.0}
USUAL = [
    Point(key, value / 7, time=1_000 + 10 * step, step=step)
    for step in range(4)
    for key, value in {"val/loss": step, "weight/layers.0/std": -step}.items()
]
BATCHES = {
    "usual": [USUAL],
    "in two halves": [USUAL[:5], USUAL[5:]],
    "sent again": [USUAL, USUAL],
    "sent again with more": [USUAL[:5], USUAL],
    "the last first": [USUAL[4:], USUAL[:4]],
    "a point twice in a batch": [USUAL[:1] * 2],
    "not finite": [[Point(key, value, 5, 0) for key, value in INFINITE.items()]],
    "a number after NaN": [[Point("a", math.nan, 5, 0)], [Point("a", -1.0, 6, 1)]],
    "two values of one step": [[Point("a", 1.0, 5, 0), Point("a", 2.0, 5, 0)], [Point("a", 1.5, 5, 0)]],
    "a later time of an earlier step": [[Point("a", 1.0, 5, 3)], [Point("a", 2.0, 9, 2)]],
    "the largest and the smallest": [[Point(key, value, 5, 0) for key, value in EXTREME.items()]],
    "whole numbers": [[Point("diverged", 1.0, 5, 0)]],
    "none": [[]],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The id of a run in tmp_path/mlflow.db."""
    client = Tracker(project=tmp_path, uri=f"sqlite:///{new_database(tmp_path / 'mlflow.db')}")._client
    return str(client.create_run("0").info.run_id)


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_the_rows_are_those_that_mlflow_writes(tmp_path: Path, run: str, batches: list[list[Point]]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    theirs = copy_database(tmp_path / "mlflow.db", tmp_path / "theirs.db")
    client = MlflowClient(f"sqlite:///{theirs}")
    for batch in batches:
        assert bulk.write(tmp_path / "mlflow.db", run, batch)
        client.log_batch(run, metrics=[Metric(p.key, p.value, p.time, p.step) for p in batch])
    for query in (METRICS, LATEST):
        assert stored(tmp_path / "mlflow.db", query) == stored(theirs, query)
    assert len(stored(theirs, METRICS)) == len({(p.key, p.step, repr(p.value)) for b in batches for p in b})


def test_a_run_that_is_deleted_or_was_never_there_gets_no_points(tmp_path: Path, run: str) -> None:
    database = tmp_path / "mlflow.db"
    assert not bulk.write(database, "0" * 32, USUAL)
    Tracker(project=tmp_path, uri=f"sqlite:///{database}").delete(run)
    assert not bulk.write(database, run, USUAL)
    assert stored(database, METRICS) == stored(database, LATEST) == []


def test_tables_of_another_version_are_left_to_mlflow(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    assert bulk.accepts(database)
    monkeypatch.setattr(schema, "TESTED_REVISIONS", {"another"})
    assert not bulk.accepts(database)
    monkeypatch.setattr(bulk, "write", None)  # must not be called
    Tracker(project=tmp_path, uri=f"sqlite:///{database}").log(run, points=USUAL)
    assert len(stored(database, METRICS)) == len(USUAL)


def test_a_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        bulk.write(tmp_path / "mlflow.db", "0" * 32, USUAL)
    assert not (tmp_path / "mlflow.db").exists()
