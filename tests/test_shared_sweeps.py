"""Real sweeps on two machines that share a PostgreSQL: killed, cut off, hung, and gone on with elsewhere."""

import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from databases import lacking
from native_stack import mlflow_server
from processes import Command, curves, epochs_of, leaderboard, open_runs, pauses, statuses
from projects import SLOW, new_project, write_study
from recorded import wait_until
from servers import free_port
from shared_state import Server
from wire import wire

from fanin import spool
from fanin.app import main
from fanin.shared import glance

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")


STATE = "tracking.state=${oc.env:FANIN_STATE_URI}"  # as in conf/tracking/server.yaml
SLOWLY = (*SLOW, "hardware.workers=1")


def machine(folder):
    """A project folder with the study."""
    new_project(folder)
    write_study(folder, epochs=8)
    return folder


@dataclass
class Team:
    """What two machines share: the database, and MLflow's, here a SQLite file."""

    server: Server
    hub: Path
    one: Path
    two: Path

    @property
    def options(self):
        hub = f"tracking.uri=sqlite:///{self.hub}/mlflow.db", f"tracking.artifacts={self.hub}/artifacts"
        return ["sweep", "faults", *hub, STATE, *SLOWLY]


@pytest.fixture
def team(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FANIN_STATE_URI", server.address())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    team = Team(server, *(machine(tmp_path / name) for name in ("hub", "one", "two")))
    (team.one / "slow").write_text("0.05")
    return team


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The sweep on one machine, undisturbed: its table, and its points in MLflow."""
    project = machine(tmp_path_factory.mktemp("alone") / "machine")
    command = Command(project, "sweep", "faults", *SLOWLY)
    assert command.end() == 0, command.output
    return leaderboard(command.output), once(project)


def once(hub):
    """The points of the four runs, of which each is FINISHED once, and each point there once."""
    assert sorted(statuses(hub).values()) == 5 * [["FINISHED"]], "with the study's own"
    found = {key: values for key, values in curves(hub).items() if not key[0].startswith("faults")}
    assert {len(values) for values in found.values()} == {1}
    return found


def trained(command, *, epochs):
    wait_until(lambda: epochs_of(command.project) >= epochs or not command.running, seconds=90)
    assert command.running, command.output


def ends_as(alone, team, command):
    """Without a fault, and with the table and the points in MLflow of the sweep `alone`."""
    assert command.end() == 0, command.output
    assert (leaderboard(command.output), once(team.hub)) == alone


def sync(team, monkeypatch):
    """`fanin sync` on the first machine."""
    monkeypatch.chdir(team.one)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{team.hub}/mlflow.db")
    assert main(["sync"]) == 0


def ends_as_its_owners(first, team, alone, launch, *, gone, back):
    """The sweep `first` after an outage from `gone` to `back` (seconds since 1970): nobody else got its study, it ends
    as if nothing had been, and no epoch waited for a second."""
    second = launch(team.two, *team.options)
    assert second.end() == 2 and "is in use by" in second.output, second.output
    (team.one / "slow").unlink()
    ends_as(alone, team, first)
    assert max(pauses(team.one, since=gone, until=back)) < 1 + max(pauses(team.one, until=gone))


def done(project):
    """The runs that have ended there."""
    return attempts(project).keys() - {run.name for run, _ in open_runs(project)}


def attempts(project):
    """Of each run: how often it was begun."""
    runs = (project / ".fanin" / "faults" / "runs").glob("*/spool.jsonl")
    return {path.parent.name: spool.digest(spool.read(path)[0]).attempts for path in runs}


def test_a_sweep_is_refused_elsewhere_while_it_lives_and_gone_on_with_there_when_it_is_killed(
    team, alone, launch, monkeypatch, capsys
):
    first = launch(team.one, *team.options)
    trained(first, epochs=11)
    monkeypatch.chdir(team.two)
    assert main(team.options) == 2
    assert "study 'faults' is in use by" in capsys.readouterr().err
    assert not attempts(team.two)
    trained(first, epochs=20)
    wait_until(lambda: glance.ended(team.server.address(), "faults") == done(team.one))
    first.kill()
    begun = [run.name for run, records in open_runs(team.one) if spool.digest(records).last_epoch]
    ended = done(team.one)
    assert len(ended) >= 2
    assert main([*team.options, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert f"= 4, of which {len(ended)} are done" in output
    assert f"/optuna: {len(ended)} runs done there, by all machines together" in output
    assert not attempts(team.two)
    assert main(team.options) == 0
    output = capsys.readouterr().out
    assert "of other machines fetched" in output
    assert f"  what was under way on {socket.gethostname()} is trained again from epoch 1: its checkpoints" in output
    for run in begun:
        digest = spool.digest(spool.read(team.two / ".fanin" / "faults" / "runs" / run / "spool.jsonl")[0])
        assert [one["epoch"] for one in digest.epochs] == [*range(9)]
    assert {attempts(team.two)[name] for name in ended} == {1}, "what is done is not repeated"
    assert (leaderboard(output), once(team.hub)) == alone
    secret = team.server.secrets["OPTUNA_DB_PASSWORD"].encode()
    written = [path for folder in (team.hub, team.one, team.two) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 50 and not [path for path in written if secret in path.read_bytes()]

    before = curves(team.hub)
    sync(team, monkeypatch)  # the first machine comes back
    assert "left alone: study 'faults' was taken over by" in capsys.readouterr().out
    assert curves(team.hub) == before
    assert main(team.options) == 0
    assert (leaderboard(capsys.readouterr().out), once(team.hub)) == alone


@pytest.mark.slow
def test_a_coordinator_that_was_cut_off_stops_when_it_comes_back_and_changes_nothing(team, alone, launch):
    first = launch(team.one, *team.options)
    trained(first, epochs=14)
    first.signal(signal.SIGSTOP)
    assert team.server.cut_off()  # as after half a minute without a sign of life
    ends_as(alone, team, launch(team.two, *team.options))
    before, done = curves(team.hub), epochs_of(team.one)
    first.signal(signal.SIGCONT)
    assert first.end() == 1, first.output
    (line,) = [line for line in first.output.splitlines() if line.startswith("fanin: ")]
    assert line.startswith("fanin: stopped: study 'faults' was taken over by ")
    assert epochs_of(team.one) - done <= 9, "at most a run is wasted"
    assert curves(team.hub) == before and once(team.hub) == alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgres_costs_no_epoch_a_second_and_leaves_the_study_with_its_owner(team, alone, launch, mode):
    (team.one / "slow").write_text("0.2")
    first = launch(team.one, *team.options)
    trained(first, epochs=4)
    team.server.stop(mode)
    gone = time.time()
    first.wait_for("tracking is down")
    time.sleep(3)
    team.server.start()
    back = time.time()
    first.wait_for("tracking is back")
    ends_as_its_owners(first, team, alone, launch, gone=gone, back=back)
    ends_as(alone, team, launch(team.two, *team.options))


@pytest.mark.slow
def test_neither_training_nor_ctrl_c_waits_for_a_postgres_that_hangs(team, alone, launch):
    first = launch(team.one, *team.options)
    trained(first, epochs=4)
    hung = time.time()
    with team.server.hung():
        trained(first, epochs=epochs_of(team.one) + 8)
        asked = time.monotonic()
        first.signal(signal.SIGINT)
        assert first.end() == 130, first.output
        assert time.monotonic() - asked < 10
    assert max(pauses(team.one, since=hung)) < 1 + max(pauses(team.one, until=hung))
    ends_as(alone, team, launch(team.two, *team.options))


@pytest.mark.slow
def test_a_network_that_swallows_everything_on_the_way_to_postgres_costs_no_epoch_a_second_and_no_point(
    team, alone, launch, monkeypatch
):
    (team.one / "slow").write_text("0.3")
    with wire(team.server.cluster.port) as network:
        monkeypatch.setenv("FANIN_STATE_URI", team.server.address(port=network.port))
        first = launch(team.one, *team.options)
        trained(first, epochs=4)
        with network.cut():
            cut = time.time()
            first.wait_for("tracking is down", seconds=90)
            why = ("no answer for 30 s", "connection timeout expired")  # first, and when it tries again
            assert any(f"127.0.0.1:{network.port}/optuna: {reason}" in first.output for reason in why), first.output
            trained(first, epochs=epochs_of(team.one) + 4)
            mended = time.time()
        first.wait_for("tracking is back")
        ends_as_its_owners(first, team, alone, launch, gone=cut, back=mended)
        assert len({line for line in first.output.splitlines() if "tracking is down" in line}) == 1


@pytest.mark.slow
def test_a_sweep_that_ends_while_postgres_is_down_is_brought_by_sync(team, alone, launch, monkeypatch):
    first = launch(team.one, *team.options)
    trained(first, epochs=20)
    team.server.stop()
    (team.one / "slow").unlink()
    assert first.end() == 0, first.output
    assert "runs are not fully in MLflow yet (tracking is down" in first.output
    team.server.start()
    sync(team, monkeypatch)
    assert once(team.hub) == alone[1]
    second = launch(team.two, *team.options)
    assert second.end() == 0 and leaderboard(second.output) == alone[0], second.output
    assert {*attempts(team.two).values()} == {1}


@pytest.mark.slow
def test_the_whole_stack_a_search_killed_again_and_again_on_two_machines_ends_as_on_one(
    team, tmp_path, launch, monkeypatch
):
    """MLflow with accounts and PostgreSQL as docker-compose.yml has them; TPE with a pruner, one worker."""
    search = ["hydra/sweeper=tpe", "hydra/sweeper/pruner=median", "hydra.sweeper.max_trials=8"]
    search += ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "study.replicates=1"]
    search += ["hydra.sweeper.pruner.n_startup_trials=2"]
    reference = launch(machine(tmp_path / "whole"), "sweep", "faults", *SLOWLY, *search)
    assert reference.end() == 0, reference.output
    values = {"FANIN_PORT": str(free_port()), "FANIN_HOST": "localhost"}
    values = team.server.secrets | values
    (tmp_path / "artifacts").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", values["MLFLOW_ADMIN_PASSWORD"])
    with (
        (tmp_path / "log").open("w") as log,
        mlflow_server(team.server.cluster, values, tmp_path / "artifacts", log=log) as uri,
    ):
        options = ["sweep", "faults", f"tracking.uri={uri}", STATE, *SLOWLY, *search]
        (team.two / "slow").write_text("0.05")
        for i in range(4):
            project = (team.one, team.two)[i % 2]
            command = launch(project, *options)
            command.worker_of(seconds=90)
            time.sleep(1.5)
            command.kill()
        (team.one / "slow").unlink()
        last = launch(team.one, *options)
        assert last.end() == 0, last.output
        assert leaderboard(last.output) == leaderboard(reference.output)
        statuses = team.server.cluster.ask(
            "select distinct status from runs r join tags t on t.run_uuid = r.run_uuid where t.key = 'fanin.run'",
            password=values["MLFLOW_DB_PASSWORD"],
        )
        assert {*statuses} <= {"FINISHED", "KILLED"}
        doubled = "select 1 from metrics where key <> 'seconds' group by run_uuid, key, step having count(*) > 1"
        assert team.server.cluster.ask(doubled, password=values["MLFLOW_DB_PASSWORD"]) == []
        states = "select distinct state from trials join studies using (study_id) where study_name = 'faults'"
        assert sorted(team.server.ask(states)) in (["COMPLETE"], ["COMPLETE", "PRUNED"]), "as optuna-dashboard shows it"
        count = "select count(*) from metrics where key = 'val/loss'"
        points = team.server.cluster.ask(count, password=values["MLFLOW_DB_PASSWORD"])
        assert points == [str(epochs_of(team.one))], "one for each epoch that any machine has recorded"
