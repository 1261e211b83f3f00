"""The file of a run's points says what MLflow says, and is used only as long as it does."""

import math
import sqlite3
from contextlib import closing

import pandas
import pytest
from recorded import make_run, make_study, new_database, stored, train
from servers import mlflow_server

from fanin import archive, query, server
from fanin.points import Point
from fanin.shipping import ship
from fanin.tracking import Tracker


def metrics(epoch):
    odd = {"up": math.inf, "down": -math.inf, "none": math.nan, "zero": -0.0}
    return {"val/loss": 2.0 - epoch, "val/accuracy": epoch / 7} | odd


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two finished runs, one of which was interrupted and gone on with, and one that failed."""
    folder = tmp_path_factory.mktemp("archive")
    new_database(folder / "server.db")
    study = make_study(folder)
    tracker = Tracker(project=folder, uri="sqlite:///server.db")
    ship(train(make_run(study), metrics=metrics), tracker=tracker)
    again = make_run(study, replicate=1)
    ship(train(again, last=1, end="KILLED", metrics=metrics, reason="interrupted"), tracker=tracker)
    ship(train(again, first=1, metrics=metrics, clock=20_000), tracker=tracker)
    ship(train(make_run(study, replicate=2), metrics=metrics, end="FAILED", reason="broke"), tracker=tracker)
    return folder


def files(project):
    return {path.parent.parent.name: path for path in project.rglob(f"mlartifacts/**/{archive.FILE}")}


def test_the_file_has_every_point_that_mlflow_has_and_the_tag_seals_it(project):
    found = files(project)
    assert len(found) == 2, "not of the run that failed: it may be gone on with"
    for run, path in found.items():
        rows = stored(
            project / "server.db", f"select key, value, timestamp, step, is_nan from metrics where run_uuid = '{run}'"
        )
        largest = 1.7976931348623157e308
        infinite = {largest: math.inf, -largest: -math.inf}
        truth = [Point(key, math.nan if nan else infinite.get(v, v), time, step) for key, v, time, step, nan in rows]
        seal = stored(
            project / "server.db", f"select value from tags where key = '{archive.TAG}' and run_uuid = '{run}'"
        )
        assert seal == [(archive.seal(truth),)] == [(archive.seal(archive.read(path.read_bytes())),)]
        assert seal[0][0].startswith(f"{len(rows)} sha256:")


def test_anything_that_knows_parquet_reads_it(project):
    table = pandas.read_parquet(next(iter(files(project).values())))
    assert list(table) == ["metric", "step", "value", "time"]
    loss = table[table["metric"] == "val/loss"]
    assert loss["value"].tolist() == [2.0, 1.0, 0.0] and loss["step"].tolist() == [0, 1, 2]
    assert (table.loc[table["metric"] == "up", "value"] == math.inf).all()


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"x" * 1000])
def test_what_is_no_file_of_points_is_refused(content):
    with pytest.raises(ValueError):
        archive.read(content)


def test_a_seal_is_broken_by_any_change():
    points = [Point("a", 0.5, 7, step) for step in range(3)]
    seals = {archive.seal(points), archive.seal(points[:2]), archive.seal([*points[:2], Point("a", 0.25, 7, 2)])}
    seals |= {archive.seal([*points[:2], Point("b", 0.5, 7, 2)]), archive.seal([*points[:2], Point("a", 0.5, 8, 2)])}
    assert len(seals) == 5 and archive.seal(points) == archive.seal(points[::-1])


def test_through_a_server_the_files_are_used_while_mlflow_says_the_same(project, monkeypatch):
    asked = []
    request = Tracker.request
    monkeypatch.setattr(server, "DENSE", 1)
    monkeypatch.setattr(Tracker, "request", lambda self, *a, **k: asked.append(a[1]) or request(self, *a, **k))
    here = {"project": project, "uri": "sqlite:///server.db"}
    with mlflow_server(project) as uri:
        pandas.testing.assert_frame_equal(query.curves("initializers", uri=uri), query.curves("initializers", **here))
        assert asked.count(server.ARTIFACT) == 2 and asked.count(server.BULK) == 6, "six metrics of the run that failed"
        run = query.runs("initializers", uri=uri)["run_id"][0]
        with closing(sqlite3.connect(project / "server.db")) as connection, connection:
            for table in ("metrics", "latest_metrics"):
                change = f"update {table} set value = 9 where run_uuid = ? and key = 'val/loss' and step = 2"
                connection.execute(change, [run])
        found = query.curves("initializers", "val/loss", uri=uri)
        pandas.testing.assert_frame_equal(found, query.curves("initializers", "val/loss", **here))
        assert 9.0 in found["value"].tolist()
