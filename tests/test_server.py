"""What a bare MLflow server gives is what its database has, however much it is asked for and whatever it refuses."""

import sqlite3
import warnings
from collections import Counter
from contextlib import closing

import pandas
import pytest
from recorded import make_run, make_study, new_database, train
from servers import mlflow_server

from fanin import query, server
from fanin.shipping import sync
from fanin.spool import Spool
from fanin.tracking import Tracker

RUNS = 130  # more than one answer takes


def insert(connection, run, key, points):
    """Points (step, time, value) of one metric, as MLflow stores them."""
    rows = [(key, value, time, step, False, run) for step, time, value in points]
    columns = "(key, value, timestamp, step, is_nan, run_uuid) values (?, ?, ?, ?, ?, ?)"
    connection.executemany(f"insert into metrics {columns}", rows)
    connection.execute(f"insert into latest_metrics {columns}", max(rows, key=lambda row: (row[3], row[2])))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Many runs of few points, and three of long metrics."""
    folder = tmp_path_factory.mktemp("server")
    database = new_database(folder / "server.db")
    study = make_study(folder)
    for number in range(RUNS):
        train(make_run(study, variant=f"{number:010x}"), last=1)
    with Spool(study.spool), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sync(folder, tracker=Tracker(project=folder, uri="sqlite:///server.db"))
    with closing(sqlite3.connect(database)) as connection, connection:
        runs = [run for (run,) in connection.execute("select run_uuid from tags where key = 'fanin.variant'")]
        twice = [(step, 10 * step + late, step + late / 2) for step in range(5_000) for late in (0, 1)]
        for run in runs[:3]:  # 15,000 steps in all are 30,000 rows
            insert(connection, run, "twice", twice)
        insert(connection, runs[3], "long", [(step, step, step / 7) for step in range(26_000)])
    return folder


@pytest.fixture(scope="module")
def uri(project):
    with mlflow_server(project) as uri:
        yield uri


@pytest.fixture
def asked(monkeypatch):
    """How often each route was asked."""
    counts = Counter()
    request = Tracker.request

    def counting(self, method, route, **arguments):
        counts[route.rpartition("/")[2]] += 1
        return request(self, method, route, **arguments)

    monkeypatch.setattr(Tracker, "request", counting)
    return counts


def same_as_in_the_database(project, uri, metric):
    found = query.curves("initializers", metric, uri=uri)
    truth = query.curves("initializers", metric, project=project, uri="sqlite:///server.db")
    pandas.testing.assert_frame_equal(found, truth)
    return found


def test_a_metric_of_many_runs_comes_in_answers_of_a_hundred_runs(project, uri, asked):
    found = same_as_in_the_database(project, uri, "val/loss")
    assert len(found) == 2 * RUNS and found["run_id"].nunique() == RUNS
    assert asked["get-history-bulk"] == 2 and not asked["get-history"]


def test_with_an_account_more_than_one_metric_comes_from_the_files_of_runs(project, uri, asked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")  # this server asks nobody, and would not mind
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long word")
    same_as_in_the_database(project, uri, "val/loss")
    assert asked["get-history-bulk"] == 2 and not asked["get-artifact"]
    same_as_in_the_database(project, uri, ["val/loss", "val/accuracy"])
    assert asked["get-artifact"] >= RUNS - 4  # those whose files do not have all that was added by hand


def test_an_answer_that_was_cut_short_is_asked_for_in_halves(project, uri, asked):
    found = same_as_in_the_database(project, uri, "twice")
    assert len(found) == 3 * 5_000 and found["value"].iloc[:2].tolist() == [0.5, 1.5]  # the later of two
    assert asked["get-history-bulk"] == 3 and not asked["get-history"]


def test_a_run_that_no_answer_holds_comes_in_pages(project, uri, asked):
    found = same_as_in_the_database(project, uri, "long")
    assert found["step"].tolist() == [*range(26_000)]
    assert asked["get-history"] == 2


def test_a_server_without_the_bulk_route_is_asked_run_by_run(project, uri, asked, monkeypatch):
    monkeypatch.setattr(server, "BULK", "/ajax-api/2.0/mlflow/metrics/none")
    monkeypatch.setattr(server, "CONNECTIONS", 1)
    same_as_in_the_database(project, uri, "val/accuracy")
    assert asked["none"] == 1 and asked["get-history"] == RUNS


def test_only_what_is_wanted_is_asked_for(project, uri, asked):
    some = query.curves("initializers", "val/*", where={"variant": [f"{number:010x}" for number in range(5)]}, uri=uri)
    assert len(some) == 2 * 2 * 5
    assert asked["get-history-bulk"] == 2 and asked["search"] == 3  # the names of studies, the study, its runs


@pytest.mark.parametrize("known", [1, 2])
def test_an_answer_counts_as_whole_only_with_every_run_to_its_last_step(known):
    rows = [("a", "key", 0, 0.0, 1), ("a", "key", 1, 0.0, 1)]
    assert server._is_whole(rows, server.Part("key", {"a": known})) == (known == 1)
    assert not server._is_whole(rows, server.Part("key", {"a": 1, "b": 0}))
    assert not server._is_whole(rows * 12_500, server.Part("key", {"a": 1}))
