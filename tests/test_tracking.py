import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from recorded import make_run, make_study, new_database, stored, stored_runs, train, wait_until
from servers import Quiet, serving

from fanin.errors import ConfigError
from fanin.shipping import ship, sync
from fanin.tracking import Tracker, TrackingDown, TrackingRefused, resolve


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, "sqlite:////project/mlflow.db"),
        ("sqlite:///other.db", "sqlite:////project/other.db"),
        ("sqlite:////elsewhere/other.db", "sqlite:////elsewhere/other.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
    ],
)
def test_a_uri_is_resolved_in_the_project_folder(uri, expected, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve(uri, project=Path("/project")) == expected


def test_the_environment_variable_of_mlflow_is_the_default(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert resolve(None, project=Path("/project")) == "http://host:1"
    assert resolve("sqlite:////a.db", project=Path("/project")) == "sqlite:////a.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlflow.db", "redis://host"])
def test_a_uri_that_mlflow_could_not_open_is_refused_at_once(uri):
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        Tracker(uri=uri)


def test_a_uri_without_its_driver_is_refused_without_showing_the_password():
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://") as caught:
        Tracker(uri="postgresql://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_tracker_does_not_import_mlflow_before_it_is_used():
    code = "import sys, fanin.shipper as s; s.Shipper(s.Tracker()).close(1); print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


CREATE = "import sys; from fanin.tracking import Tracker; Tracker(project=sys.argv[1]).connect()"


def test_processes_that_open_a_fresh_database_at_once_all_succeed(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    children = [subprocess.Popen([sys.executable, "-c", CREATE, str(tmp_path)]) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    assert stored(tmp_path / "mlflow.db", "pragma integrity_check") == [("ok",)]
    assert stored(tmp_path / "mlflow.db", "pragma journal_mode") == [("wal",)]
    assert stored(tmp_path / "mlflow.db", "select count(*) from experiments") == [(1,)]  # MLflow's Default


def test_a_store_whose_maker_was_killed_half_way_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", CREATE, str(tmp_path)]) as child:
        half = tmp_path / "mlflow.db.partial"
        wait_until(lambda: half.exists() and half.stat().st_size > 0)
        child.kill()
    assert half.exists() and not (tmp_path / "mlflow.db").exists()
    subprocess.run([sys.executable, "-W", "ignore", "-c", CREATE, str(tmp_path)], check=True)
    assert stored(tmp_path / "mlflow.db", "pragma integrity_check") == [("ok",)]
    assert stored(tmp_path / "mlflow.db", "select count(*) from experiments") == [(1,)]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("ended", ["killed", "closed"])
def test_removing_the_database_file_alone_starts_afresh(ended, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    database = new_database(tmp_path / "mlflow.db")
    writing = "update experiments set name = 'mine' where experiment_id = 0"
    stored(database, "pragma journal_mode=wal")
    end = {"killed": "import os; os.kill(os.getpid(), 9)", "closed": "c.close()"}[ended]
    code = f"import sqlite3; c = sqlite3.connect({str(database)!r}); c.execute({writing!r}); c.commit(); {end}"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert database.with_name("mlflow.db-wal").exists() == (ended == "killed")
    database.unlink()
    Tracker(project=tmp_path).connect()
    assert stored(database, "pragma integrity_check") == [("ok",)]
    assert stored(database, "select name from experiments") == [("Default",)]


def test_a_copy_of_the_database_file_alone_has_all_that_was_shipped(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_run(make_study(tmp_path))
    train(folder)
    tracker = Tracker(project=tmp_path)
    sync(tmp_path, tracker=tracker)
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "mlflow.db").read_bytes())
    count = "select count(*) from metrics"
    assert stored(copy, count) == stored(tmp_path / "mlflow.db", count) != [(0,)]


SHIP = """
import sys
from pathlib import Path
from fanin.folders import remembered
from fanin.shipping import ship
from fanin.spool import Spool, digest, read
from fanin.tracking import Tracker
tracker = Tracker(project=sys.argv[1], uri="sqlite:///mlflow.db")
tracker.connect()
print("ready", flush=True)
for folder in remembered(Path(sys.argv[1])):
    if folder == folder.study:
        continue
    with Spool(folder.spool) as spool:
        if digest(read(folder.spool)[0]).end:
            continue
        spool.append("start")
        for epoch in range(4):
            spool.append("epoch", epoch=epoch, metrics={"val/loss": 1 / (epoch + 1), "a": float("nan")})
            ship(folder, tracker=tracker)
        spool.append("end", status="FINISHED", metrics={"test/loss": 0.5}, step=3)
    ship(folder, tracker=tracker)
"""


def test_kill_9_of_the_shipping_process_at_any_moment_loses_and_doubles_nothing(tmp_path):
    new_database(tmp_path / "mlflow.db")
    study = make_study(tmp_path)
    for replicate in range(8):
        run = make_run(study, replicate=replicate)
        train(run, last=0, end=None, metrics=lambda _: {"val/loss": 1.0, "a": float("nan")})
    for more in (0, 1, 10):  # points to wait for: none, the first, some way into another run
        enough = len(stored(tmp_path / "mlflow.db")) + more
        command = [sys.executable, "-W", "ignore", "-c", SHIP, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            wait_until(lambda enough=enough: len(stored(tmp_path / "mlflow.db")) >= enough)
            child.send_signal(signal.SIGKILL)
    before = len(stored(tmp_path / "mlflow.db"))
    subprocess.run([sys.executable, "-W", "ignore", "-c", SHIP, str(tmp_path)], check=True)
    report = sync(tmp_path, tracker=Tracker(project=tmp_path, uri="sqlite:///mlflow.db"))
    assert report.left == {} and 0 < before < 8 * 10
    database = tmp_path / "mlflow.db"
    assert [row[1] for row in stored_runs(database)] == ["FINISHED"] * 8
    points = stored(database, "select run_uuid, key, step from metrics")
    assert len(points) == len(set(points)) == 8 * (4 + 4 + 1 + 1)
    assert len(stored(database, "select * from runs")) == 9


@pytest.mark.slow
def test_a_database_that_another_program_locks_is_down_then_catches_up(tmp_path):
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    run = train(make_run(make_study(tmp_path)))
    assert ship(run, tracker=tracker)
    later = train(make_run(run.study, replicate=1))
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(TrackingDown, match="locked"):  # after MLflow's patience of 20 s
            ship(later, tracker=tracker)
        other.execute("rollback")
    assert ship(later, tracker=tracker)
    assert len(stored_runs(tmp_path / "mlflow.db")) == 2


def test_artifacts_can_be_listed_by_mlflow(tmp_path):
    new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    run = train(make_run(make_study(tmp_path)))
    (run.artifacts / "pictures").mkdir(parents=True)
    (run.artifacts / "pictures" / "confusion.png").write_bytes(b"png")
    ship(run, tracker=tracker)
    with tracker.translated() as client:
        found = client.list_artifacts(run.shipped(tracker.uri).run, "pictures")
    assert [(file.path, file.file_size) for file in found] == [("pictures/confusion.png", 3)]


def server_that_answers(status):
    class Answer(Quiet):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

    return serving(Answer)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, TrackingRefused),
        (403, TrackingRefused),
        (404, TrackingRefused),
        (429, TrackingDown),
        (500, TrackingDown),
        (502, TrackingDown),
        (503, TrackingDown),
    ],
)
def test_answers_that_may_change_are_told_from_those_that_will_not(status, error, tmp_path):
    with server_that_answers(status) as uri:
        begin = time.monotonic()
        with pytest.raises(error):
            Tracker(project=tmp_path, uri=uri).connect()
        assert time.monotonic() - begin < 60, "MLflow retried by itself"


def test_a_server_that_is_not_there_is_down_at_once(tmp_path):
    begin = time.monotonic()
    with pytest.raises(TrackingDown):
        Tracker(project=tmp_path, uri="http://127.0.0.1:9").connect()
    assert time.monotonic() - begin < 60
