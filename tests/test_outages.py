"""Storage and clocks that fail under a sweep: full disks, locked databases, servers that go, passwords that expire."""

import os
import resource
import sqlite3
import time
from contextlib import closing, contextmanager

import psutil
import pytest
from databases import lacking
from native_stack import import_stack, postgres, postgres_programs
from processes import (
    children,
    curves,
    epochs_of,
    folders,
    leaderboard,
    open_runs,
    pauses,
    query,
)
from projects import SLOW, new_project, write_study
from recorded import copy_database, make_run, make_study, new_database, stored, stored_runs, train, wait_until
from servers import flaky_server, free_port, mlflow_server
from wire import wire

import fanin
from fanin import spool
from fanin.app import main
from fanin.shipper import Shipper
from fanin.shipping import ship
from fanin.sweep.folder import outcome
from fanin.tracking import Tracker

JUMPY = '''

import os


class Jumpy(Net):
    """Whose machine's clock is put back by an hour in its 25th step, unless there is a file "steady"."""

    steps = 0

    def act(self):
        Jumpy.steps += 1
        if Jumpy.steps == 1:
            true = time.time
            time.time = lambda: true() - 3600 * os.path.exists("jumped")
        if Jumpy.steps == 25 and not os.path.exists("steady"):
            open("jumped", "w").close()
'''
SLOWLY = (*SLOW, "hardware.workers=1")
ENOUGH = 1 << 14  # bytes: for the lines a sweep prints and a study's spool, not for a database or a picture


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path, models=JUMPY)


@contextmanager
def full_disk(limit, *, pid=0):
    """No file of the process can grow past `limit` bytes: a full disk, as far as one can be had without root."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        if not pid or psutil.pid_exists(pid):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def training(project, command, *, epochs=2):
    """Wait until some epochs more are recorded."""
    enough = epochs_of(project) + epochs
    wait_until(lambda: epochs_of(project) >= enough or not command.running, seconds=90)
    assert command.running, command.output


def all_is_there(project):
    """Every run is in MLflow, ended and once, and so is every point of every spool."""
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)}
    points = curves(project)
    assert {key: values for key, values in points.items() if len(values) != 1} == {}
    recorded = {
        (run.name, key, record["epoch"])
        for run in folders(project)
        for record in spool.digest(spool.read(run / "spool.jsonl")[0]).epochs
        for key in record["metrics"]
    }
    assert {key for key in recorded if key[1] != "seconds"} <= points.keys()
    return points


# ---- 8: a full disk ----


@pytest.mark.parametrize(
    ("limit", "size", "reason"),
    [
        (100, 1, "File too large"),  # what shipping itself writes in the run's folder
        (1 << 14, 1, "disk I/O error"),  # the database
        (1 << 17, 1 << 18, "large.bin"),  # MLflow's copy of an artifact
    ],
    ids=["folder of the run", "database", "artifacts"],
)
def test_a_disk_that_is_full_while_shipping_counts_as_down_and_leaves_the_database_whole(tmp_path, limit, size, reason):
    database = new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    run = train(make_run(make_study(tmp_path)), last=1, end=None)
    ship(run, tracker=tracker)
    train(run, first=2, last=20)
    run.artifacts.mkdir()
    (run.artifacts / "large.bin").write_bytes(bytes(size))
    shipper = Shipper(tracker, interval=0.01)
    with full_disk(limit):
        shipper.nudge(run, ended=True)
        wait_until(lambda: shipper.status)
    assert shipper.status.startswith("tracking is down") and reason in shipper.status, shipper.status
    assert stored(database, "pragma integrity_check") == [("ok",)]
    assert shipper.close(30) == []  # space was freed
    assert [row[1] for row in stored_runs(database)] == ["FINISHED"]
    points = stored(database, "select key, step from metrics")
    assert len(points) == len(set(points)) == 2 * 21 + 3
    assert next(tmp_path.glob("mlartifacts/**/large.bin")).stat().st_size == size


@pytest.mark.slow
def test_a_run_whose_spool_meets_a_full_disk_fails_with_its_name_and_the_same_command_finishes_it(project, launch):
    write_study(project, epochs=12, replicates=1)
    (project / "slow").write_text("0.02")
    command = launch(project, "sweep", "faults", *SLOWLY)
    worker, run = command.worker_of()
    with full_disk((run / "spool.jsonl").stat().st_size + 300, pid=worker.pid):
        assert command.end() == 1, command.output
    assert outcome(run).status == "FAILED"
    assert f"no space left for the record of a run: '{run}/spool.jsonl'" in command.output
    assert children(project)[run.name] == ["FAILED"]
    (project / "slow").unlink()
    again = launch(project, "sweep", "faults", *SLOWLY)
    assert again.end() == 0, again.output
    assert len(all_is_there(project)) >= 2 * 13 * 4


@pytest.mark.slow
def test_a_sweep_goes_on_while_the_disk_of_the_database_is_full_and_ships_all_when_there_is_room(project, launch):
    write_study(project, epochs=60, replicates=1)
    (project / "slow").write_text("0.02")
    command = launch(project, "sweep", "faults", *SLOWLY)
    training(project, command)
    with full_disk(ENOUGH, pid=command.process.pid):
        command.wait_for("tracking is down")
        training(project, command, epochs=10)
        assert query(project, "pragma integrity_check") == [("ok",)]
    (project / "slow").unlink()
    assert command.end() == 0, command.output
    assert "not fully in MLflow" not in command.output
    all_is_there(project)


# ---- 11: two sweeps at once ----


@pytest.mark.slow
def test_two_sweeps_at_once_into_one_fresh_database_keep_their_runs_apart(project, launch):
    (project / "mlflow.db").unlink()
    for name, initializer in (("one", "zeros,he_normal"), ("two", "ones,he_normal")):
        write_study(project, name=name, initializers=initializer, epochs=10)
    commands = [launch(project, "sweep", name, "hardware.workers=1") for name in ("one", "two")]
    assert [command.end() for command in commands] == [0, 0], [command.output for command in commands]
    for name in ("one", "two"):
        assert children(project, name) == {run.name: ["FINISHED"] for run in folders(project, name)}
        points = curves(project, name)
        assert {len(values) for values in points.values()} == {1}
        assert len({key for key, *_ in points}) == 4 and len(points) >= 4 * 11 * 4


# ---- 9: a locked database ----


def test_a_database_that_is_locked_longer_than_anybody_waits_gets_everything_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.bulk.BUSY", 0.2)
    monkeypatch.setattr("fanin.shipper.LONGEST_PAUSE", 0.2)
    database = new_database(tmp_path / "mlflow.db")
    run = train(make_run(make_study(tmp_path)), last=2, end=None)
    tracker = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    ship(run, tracker=tracker)
    shipper = Shipper(tracker, interval=0.01)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("begin exclusive")
        for epoch in (3, 4):
            train(run, first=epoch, last=epoch, end=None)
            shipper.nudge(run)
            wait_until(lambda: "tracking is down" in shipper.status and "locked" in shipper.status)
        other.execute("rollback")
    assert shipper.close(30) == []
    points = stored(database, "select key, step from metrics")
    assert sorted(points) == [(key, step) for key in ("val/accuracy", "val/loss") for step in range(5)]


@pytest.mark.slow
def test_training_does_not_wait_for_a_database_that_is_locked_for_half_a_minute(project, launch):
    write_study(project, epochs=100, replicates=1)
    (project / "slow").write_text("0.02")
    command = launch(project, "sweep", "faults", *SLOWLY)
    training(project, command, epochs=8)
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None, timeout=20)) as other:
        other.execute("begin exclusive")
        locked = time.time()
        time.sleep(30)
        other.execute("rollback")
    freed = time.time()
    (project / "slow").unlink()
    assert command.end() == 0, command.output
    all_is_there(project)
    assert max(pauses(project, since=locked, until=freed)) < 1 + max(pauses(project, until=locked))


# ---- 7: PostgreSQL restarts ----


@pytest.mark.slow
def test_restarts_of_postgres_fast_or_immediate_lose_and_double_nothing(tmp_path, monkeypatch):
    if lacking():
        pytest.skip(lacking())
    monkeypatch.setattr("fanin.shipper.LONGEST_PAUSE", 0.5)
    stack = import_stack()
    stack.complete_env(tmp_path / ".env")
    password = stack.read_env(tmp_path / ".env")["MLFLOW_DB_PASSWORD"]
    run = make_run(make_study(tmp_path))
    with postgres(postgres_programs(), stack.read_env(tmp_path / ".env")) as cluster:
        data = ("-D", f"{cluster.folder}/data")
        places = f"-p {cluster.port} -k {cluster.folder} -h 127.0.0.1"
        uri = f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{cluster.port}/mlflow"
        tracker = Tracker(project=tmp_path, uri=uri)
        tracker.connect()
        shipper = Shipper(tracker, interval=0.01)
        with spool.Spool(run.spool) as log:
            log.append("start")
            for mode in ("fast", "immediate"):
                cluster.call("pg_ctl", "stop", "-m", mode, "-s", *data)
                wait_until(lambda log=log: record_another(log, run, shipper) and "tracking is down" in shipper.status)
                cluster.call("pg_ctl", "start", "-s", "-w", *data, "-l", f"{cluster.folder}/log.2", "-o", places)
                wait_until(lambda log=log: record_another(log, run, shipper) and not shipper.status, seconds=60)
            log.append("end", status="FINISHED", metrics={}, step=0)
        try:
            shipper.nudge(run, ended=True)
            assert shipper.close(60) == []
            rows = cluster.ask("select step from metrics where key = 'val/loss' order by step", password=password)
            epochs = [record["epoch"] for record in spool.digest(spool.read(run.spool)[0]).epochs]
            assert [*map(int, rows)] == epochs and len(epochs) > 4
            statuses = cluster.ask("select status from runs where name like '%r0'", password=password)
            assert statuses == ["FINISHED"]
        finally:
            cluster.call("pg_ctl", "stop", "-m", "fast", "-s", *data)


def record_another(log, run, shipper):
    """One more epoch, and say so; always true."""
    epochs = spool.digest(spool.read(log.path)[0]).epochs
    log.append("epoch", epoch=len(epochs), metrics={"val/loss": 1 / (1 + len(epochs))})
    shipper.nudge(run)
    return True


# ---- 19: a clock that is put back ----


def test_a_clock_that_is_put_back_by_an_hour_changes_no_curve_and_ends_no_run(
    project, tmp_path_factory, monkeypatch, capsys
):
    tables, true = [], time.time
    for place in (project, new_project(tmp_path_factory.mktemp("steady"), models=JUMPY)):
        write_study(place, epochs=6, replicates=1)
        if place != project:
            (place / "steady").touch()
        monkeypatch.chdir(place)
        with monkeypatch.context() as patch:  # the clock of the coordinator is the same machine's
            patch.setattr(time, "time", lambda: true() - 3600 * os.path.exists("jumped"))
            code = main(["sweep", "faults", "model=softmax", "model._target_=mine.Jumpy", "hardware.workers=1"])
        output = capsys.readouterr().out
        assert code == 0, output
        tables.append((all_is_there(place), leaderboard(output)))
    assert (project / "jumped").exists()
    assert tables[0] == tables[1]
    assert [spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)] == [1, 1]
    times = [[record["time"] for record in spool.read(run / "spool.jsonl")[0]] for run in folders(project)]
    assert any(times[i] != sorted(times[i]) for i in range(2)), "the clock was not put back within a run"
    curve = fanin.curves("faults", "val/loss", project=project)
    assert [list(steps) for _, steps in curve.groupby("run_id", observed=True).step] == 2 * [[*range(7)]]
    assert {*fanin.runs("faults", project=project).status} == {"FINISHED"}


# ---- 4 and 5: a server that is down; the extras: a password that expires ----


def at_server(project):
    """The projects's place in the server's database, as if it had been its own."""
    copy_database(project / "server.db", project / "mlflow.db")


@pytest.mark.slow
def test_a_minute_without_the_server_costs_no_point_and_no_second_of_training(project, launch):
    write_study(project, epochs=100)
    new_database(project / "server.db")
    (project / "slow").write_text("0.02")
    port = free_port()
    with mlflow_server(project, port=port) as uri:
        command = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri={uri}")
        training(project, command, epochs=20)
    gone = time.time()
    command.wait_for("tracking is down")
    time.sleep(60)
    assert command.running, command.output
    back = time.time()
    with mlflow_server(project, port=port):
        (project / "slow").unlink()
        assert command.end() == 0, command.output
    assert "not fully in MLflow" not in command.output
    at_server(project)
    assert len(all_is_there(project)) >= 4 * 101 * 4
    assert max(pauses(project, since=gone, until=back)) < 1 + max(pauses(project, until=gone))


@pytest.mark.slow
def test_without_a_server_a_sweep_ends_well_says_so_and_sync_brings_everything_later(project, launch, monkeypatch):
    write_study(project)
    new_database(project / "server.db")
    port = free_port()
    command = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri=http://127.0.0.1:{port}")
    assert command.end() == 0, command.output
    assert "fanin: the runs stay here until tracking is back: " in command.output
    assert "5 runs are not fully in MLflow yet (tracking is down" in command.output
    assert "`fanin sync` ships the rest" in command.output
    monkeypatch.chdir(project)
    with mlflow_server(project, port=port) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["sync"]) == 0
    at_server(project)
    all_is_there(project)


@pytest.mark.slow
def test_a_network_that_swallows_everything_costs_no_point_and_no_second_of_training(project, launch):
    """Connections stay open and are taken, nothing comes through, and nobody is told."""
    write_study(project, epochs=100)
    new_database(project / "server.db")
    (project / "slow").write_text("0.02")
    with mlflow_server(project) as server, wire(int(server.rpartition(":")[2])) as network:
        command = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri=http://127.0.0.1:{network.port}")
        training(project, command, epochs=20)
        with network.cut():
            cut = time.time()
            command.wait_for("tracking is down")
            training(project, command, epochs=40)
            mended = time.time()
        command.wait_for("tracking is back")
        (project / "slow").unlink()
        assert command.end() == 0, command.output
    assert "not fully in MLflow" not in command.output
    (said,) = {line for line in command.output.splitlines() if "tracking is down" in line}
    assert "timed out" in said
    at_server(project)
    assert len(all_is_there(project)) >= 4 * 101 * 4
    assert max(pauses(project, since=cut, until=mended)) < 1 + max(pauses(project, until=cut))


@pytest.mark.slow
def test_behind_a_network_that_swallows_everything_from_the_beginning_a_sweep_ends_well_and_sync_brings_all(
    project, launch, monkeypatch
):
    write_study(project)
    new_database(project / "server.db")
    with mlflow_server(project) as server, wire(int(server.rpartition(":")[2])) as network:
        uri = f"http://127.0.0.1:{network.port}"
        with network.cut():
            command = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri={uri}")
            assert command.end() == 0, command.output
        assert "fanin: the runs stay here until tracking is back: " in command.output
        assert "5 runs are not fully in MLflow yet (tracking is down" in command.output
        monkeypatch.chdir(project)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["sync"]) == 0
    at_server(project)
    all_is_there(project)


@pytest.mark.slow
def test_a_password_that_expires_in_mid_sweep_is_said_in_one_line_and_not_tried_for_ever(project, launch):
    write_study(project, epochs=60, replicates=1)
    new_database(project / "server.db")
    (project / "slow").write_text("0.02")
    asked = []

    def refusal():
        if asked:
            asked.append(time.monotonic())
            return 401
        return None

    with mlflow_server(project) as server, flaky_server(server, refusal=refusal) as (uri, _):
        command = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri={uri}")
        training(project, command, epochs=12)
        asked.append(time.monotonic())  # from here on
        command.wait_for("tracking refused")
        (project / "slow").unlink()
        assert command.end() == 0, command.output
        (line,) = [line for line in command.output.splitlines() if "not fully in MLflow" in line]
        assert "(401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
        assert "`fanin sync` ships the rest" in line
        assert len(asked) < 20
        assert not list(open_runs(project)), "training has nothing to do with it"
        asked.clear()  # a new password
        again = launch(project, "sweep", "faults", *SLOWLY, f"tracking.uri={uri}")
        assert again.end() == 0, again.output
    at_server(project)
    all_is_there(project)
