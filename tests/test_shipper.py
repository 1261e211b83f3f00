import threading
import time

import pytest
from recorded import make_run, make_study, new_database, stored, stored_runs, train, wait_until
from servers import free_port, mlflow_server

from fanin.shipper import Shipper
from fanin.shipping import ship
from fanin.spool import Spool
from fanin.tracking import Tracker, TrackingDown, TrackingRefused


class Recorder:
    """Stands in for `ship` and its tracker: notes what is shipped when, and fails as told."""

    def __init__(self, monkeypatch):
        self.calls, self.faults = [], []
        monkeypatch.setattr("fanin.shipper.ship", self.ship)

    def ship(self, folder, *, tracker, guard, forgot):
        self.calls.append((folder.path.name, time.monotonic()))
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        return True

    def settle(self):
        """There is no database."""


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


@pytest.fixture
def runs(tmp_path):
    study = make_study(tmp_path)
    return [make_run(study, replicate=replicate) for replicate in range(3)]


def test_the_batches_of_a_run_become_rarer_up_to_a_longest_pause(recorder, runs, monkeypatch):
    monkeypatch.setattr("fanin.shipper.LONGEST_INTERVAL", 0.2)
    begin = time.monotonic()
    shipper = Shipper(recorder, interval=0.1)

    def shipped_often() -> bool:
        shipper.nudge(runs[0])
        return len(recorder.calls) >= 4

    wait_until(shipped_often)
    shipper.close(5)
    times = [begin, *(when for _, when in recorder.calls[:4])]
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, [0.1, 0.1, 0.2, 0.2], strict=True))


def test_what_has_ended_is_shipped_at_once_and_what_runs_in_its_time(recorder, runs):
    shipper = Shipper(recorder, interval=60)
    shipper.nudge(runs[0])
    shipper.nudge(runs[1], ended=True)
    wait_until(lambda: recorder.calls)
    shipper.nudge(runs[1], ended=True)
    wait_until(lambda: len(recorder.calls) == 2)
    assert [name for name, _ in recorder.calls] == 2 * [runs[1].path.name]
    shipper.close(5)


def test_closing_ships_at_once_what_waits(recorder, runs):
    shipper = Shipper(recorder, interval=60)
    for run in runs:
        shipper.nudge(run)
        shipper.nudge(run)
    assert recorder.calls == []
    assert shipper.close(5) == []
    assert sorted(name for name, _ in recorder.calls) == sorted(run.path.name for run in runs)


def test_a_store_that_is_down_is_tried_again_with_growing_pauses(recorder, runs, monkeypatch):
    monkeypatch.setattr("fanin.shipper.FIRST_PAUSE", 0.05)
    recorder.faults = [TrackingDown("refused the connection")] * 3
    shipper = Shipper(recorder)
    shipper._pause = 0.05
    shipper.nudge(runs[0])
    wait_until(lambda: shipper.status)
    assert "tracking is down, 1 wait" in shipper.status and "refused the connection" in shipper.status
    wait_until(lambda: not shipper.status)
    times = [when for _, when in recorder.calls]
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True)] == [True] * 3
    assert shipper.close(5) == []


def test_what_stays_unshipped_is_named_on_closing(recorder, runs):
    recorder.faults = [TrackingDown("down")] * 100
    shipper = Shipper(recorder)
    for run in runs:
        shipper.nudge(run)
    begin = time.monotonic()
    assert shipper.close(0.3) == runs
    assert time.monotonic() - begin < 10
    wait_until(lambda: not shipper._thread.is_alive())


def test_a_refused_run_does_not_hold_up_the_others(recorder, runs):
    recorder.faults = [TrackingRefused("the run is deleted")]
    shipper = Shipper(recorder)
    for run in runs:
        shipper.nudge(run)
    wait_until(lambda: len(recorder.calls) == 3)
    shipper.nudge(runs[0])  # not at once again
    time.sleep(0.1)
    assert len(recorder.calls) == 3
    assert shipper.status == "tracking refused 1: the run is deleted"
    recorder.faults = [TrackingRefused("the run is deleted")]
    assert shipper.close(5) == [runs[0]]
    assert len(recorder.calls) == 4


def test_nudging_never_waits_for_the_store(recorder, monkeypatch, runs):
    answer = threading.Event()
    monkeypatch.setattr("fanin.shipper.ship", lambda folder, **_: answer.wait(20))
    shipper = Shipper(recorder)
    shipper.nudge(runs[0])
    begin = time.monotonic()
    for _ in range(1000):
        shipper.nudge(runs[1])
    assert time.monotonic() - begin < 10
    assert shipper.close(0.1) == runs[:2]  # one on its way, one waiting
    answer.set()
    wait_until(lambda: not shipper._thread.is_alive())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_our_own_is_visible_and_leaves_the_caller_alone(recorder, monkeypatch, runs):
    def fail(folder, **_):
        raise AssertionError("a bug")

    monkeypatch.setattr("fanin.shipper.ship", fail)
    shipper = Shipper(recorder)
    shipper.nudge(runs[0])
    wait_until(lambda: "fanin sync" in shipper.status)
    shipper.nudge(runs[1])
    assert shipper.close(1) == runs[:2]


def test_a_server_that_goes_and_comes_back_gets_every_point_once(tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shipper.LONGEST_PAUSE", 0.5)
    new_database(tmp_path / "server.db")
    port = free_port()
    tracker = Tracker(project=tmp_path, uri=f"http://127.0.0.1:{port}")
    study = make_study(tmp_path)
    run = make_run(study)
    shipper = Shipper(tracker, interval=0.05)
    with Spool(run.spool) as spool:
        spool.append("start")
        for epoch in range(5):  # the server is not up yet
            assert spool.append("epoch", epoch=epoch, metrics={"val/loss": 1 / (epoch + 1)})
            shipper.nudge(run)
        wait_until(lambda: "tracking is down" in shipper.status)
        with mlflow_server(tmp_path, port=port):
            wait_until(lambda: len(stored(tmp_path / "server.db")) == 5)
        for epoch in range(5, 10):  # it is gone again
            spool.append("epoch", epoch=epoch, metrics={"val/loss": 1 / (epoch + 1)})
            shipper.nudge(run)
        wait_until(lambda: "tracking is down" in shipper.status)
        spool.append("end", status="FINISHED", metrics={"test/loss": 0.1}, step=9)
        shipper.nudge(run)
        with mlflow_server(tmp_path, port=port):
            assert shipper.close(60) == []
    points = {(key, step): value for key, step, value, *_ in stored(tmp_path / "server.db")}
    assert len(points) == len(stored(tmp_path / "server.db")) == 12
    assert all(points["val/loss", epoch] == 1 / (epoch + 1) for epoch in range(10))
    assert [row[1] for row in stored_runs(tmp_path / "server.db")] == ["FINISHED"]


def test_bookkeeping_of_a_run_is_cheap(tmp_path):
    new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    study = make_study(tmp_path)
    metrics = {f"weight/layers.{i % 3}/m{i}": i / 7 for i in range(41)}
    runs = [train(make_run(study, replicate=replicate), last=10, metrics=lambda _: metrics) for replicate in range(12)]
    ship(runs[0], tracker=tracker)
    ship(runs[1], tracker=tracker)
    costs = []
    for run in runs[2:]:
        begin = time.process_time()
        ship(run, tracker=tracker)
        costs.append(time.process_time() - begin)
    assert min(costs) < 0.15  # 35 ms at rest


def test_a_study_whose_database_was_removed_is_shipped_anew_with_the_runs_that_had_been_done(tmp_path):
    database = new_database(tmp_path / "mlflow.db")
    study = make_study(tmp_path)
    done = train(make_run(study))
    with Spool(study.spool) as spool:
        spool.append("end", status="FINISHED", reason=None, metrics={}, step=0)
    for folder in (done, study):
        ship(folder, tracker=Tracker(project=tmp_path))
    before = stored(database)
    for file in tmp_path.glob("mlflow.db*"):
        file.unlink()
    new_database(database)
    fresh = Tracker(project=tmp_path)
    fresh._client._tracking_client.store.engine.dispose()  # connects anew, as another process would
    with Spool(study.spool) as spool:
        spool.append("start")
    shipper = Shipper(fresh, interval=0.01)
    shipper.catch_up(study)
    assert shipper.close(30) == []
    assert stored(database) == before and len(stored_runs(database)) == 1
