"""What `fanin doctor` finds of the project's own records."""

import sqlite3
from contextlib import closing

import pytest
from recorded import make_run, make_study, new_database, stored, train
from servers import Quiet, mlflow_server, serving

from fanin.doctor import store
from fanin.doctor.finding import NOTE, OK, PROBLEM, Finding
from fanin.doctor.store import tracking
from fanin.folders import Shipped
from fanin.shipping import ship, sync
from fanin.spool import Spool
from fanin.tracking import Tracker


def told(project, uri="sqlite:///mlflow.db"):
    return [(one.level, one.text) for one in tracking(project, {"uri": uri, "artifacts": None})]


def left(count, *studies):
    are = "run is" if count == 1 else "runs are"
    names = ", ".join(studies)
    return (NOTE, f"{count} {are} in .fanin/ and not (completely) in the store: fanin sync ships them ({names})")


def pretend_shipped(study, uri, number):
    """As if the study with one run had been."""
    for folder in (study, train(make_run(study))):
        folder.remember(Shipped(uri, number, folder.spool.stat().st_size, "RUNNING"))


def test_runs_that_the_store_lacks_are_counted_whether_it_never_had_them_or_lost_them(tmp_path):
    database = new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    study = make_study(tmp_path)
    first, second = train(make_run(study)), train(make_run(study, replicate=1), last=1, end=None)
    assert told(tmp_path)[1:] == [left(2, "initializers")]
    ship(first, tracker=tracker)
    assert told(tmp_path)[1:] == [left(1, "initializers")]
    ship(second, tracker=tracker)
    assert told(tmp_path) == [(OK, f"{database} has 3 runs")]
    train(second, first=2, last=2)
    assert told(tmp_path)[1:] == [left(1, "initializers")], "shipped in part"
    with Spool(study.spool):
        assert len(told(tmp_path)) == 1, "a living sweep sees to it"
    ship(second, tracker=tracker)

    for file in tmp_path.glob("mlflow.db*"):
        file.unlink()
    assert told(tmp_path)[1:] == [left(2, "initializers")] and not database.exists(), "nothing is made"
    new_database(database)
    assert told(tmp_path)[1:] == [left(2, "initializers")]
    fresh = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    fresh._client._tracking_client.store.engine.dispose()  # connects anew, as another process would
    assert sync(tmp_path, tracker=fresh).left == {}
    assert told(tmp_path) == [(OK, f"{database} has 3 runs")]
    points = stored(database, "select run_uuid, key, step from metrics")
    assert len(points) == len({*points}) == 18


def test_of_a_server_it_asks_for_each_study_and_of_one_that_is_down_it_says_what_waits(tmp_path):
    new_database(tmp_path / "server.db")
    with mlflow_server(tmp_path) as uri:
        tracker = Tracker(project=tmp_path, uri=uri)
        ship(train(make_run(make_study(tmp_path))), tracker=tracker)
        assert told(tmp_path, uri) == [(OK, f"{uri} answers")]
        one = make_study(tmp_path, "another")
        waiting = train(make_run(one))
        assert told(tmp_path, uri)[1:] == [left(1, "another")]
        ship(waiting, tracker=tracker)
        one.remember(one.shipped(uri).__class__(uri, "0" * 32, one.spool.stat().st_size, "RUNNING"))
        assert told(tmp_path, uri)[1:] == [left(1, "another")], "the store has no such study any more"
        train(make_run(one, replicate=1))
    (level, text), waits = told(tmp_path, uri)
    assert level == PROBLEM and "start it" in text and waits == left(1, "another")


@pytest.mark.parametrize("late", [False, True], ids=["locked", "locked while it is looked at"])
def test_a_locked_database_is_a_finding_and_nobody_is_told_to_move_it_away(tmp_path, monkeypatch, late):
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    database = new_database(tmp_path / "mlflow.db")
    for name in ("initializers", "another"):
        pretend_shipped(make_study(tmp_path, name), f"sqlite:///{database}", "1" * 32)
    if late:
        monkeypatch.setattr(store, "_database", lambda file: Finding(OK, "tracking", "it could be read"))
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("pragma locking_mode = exclusive")
        other.execute("begin exclusive")
        other.execute("update runs set name = name")
        found = told(tmp_path)
    why = f"{database} is locked by another program; what it lacks waits in .fanin/ until that one is done"
    assert found == [(OK, "it could be read")] * late + [(PROBLEM, why)]


class Strict(Quiet):
    """MLflow's server, of whose runs one may not be seen, and all others were removed."""

    def do_GET(self):
        if "runs/get" not in self.path:
            self._answer(200, "{}")
        elif "1" * 32 in self.path:
            self._answer(403, "Permission denied")
        else:
            self._answer(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}')

    do_POST = do_GET

    def _answer(self, status, text):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def test_a_study_that_may_not_be_seen_is_a_finding_and_the_next_ones_are_asked_for(tmp_path):
    with serving(Strict) as uri:
        for name, number in [("forbidden", "1"), ("removed", "2")]:
            pretend_shipped(make_study(tmp_path, name), uri, number * 32)
        (store, forbidden, waits) = told(tmp_path, uri)
    assert store == (OK, f"{uri} answers") and waits == left(1, "removed")
    assert forbidden[0] == PROBLEM
    assert forbidden[1].startswith(f"study 'forbidden': {uri}: ") and "has no right to this study (403)" in forbidden[1]
