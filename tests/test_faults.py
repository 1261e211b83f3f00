"""What a sweep promises when things die: real processes and signals, MLflow's database read without our code."""

import json
import os
import random
import signal
import time

import pytest
from conftest import ROOT
from processes import (
    Command,
    children,
    curves,
    epochs_of,
    folders,
    leaderboard,
    open_runs,
    statuses,
    write_study,
)
from recorded import new_database, wait_until

from fanin import spool
from fanin.sweep.folder import outcome

# MLflow 3.17 uses a loader option that SQLAlchemy 2.1 deprecates: not ours to mend
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
MODELS = '''\
import os
import signal
import time

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_shape, classes):
        super().__init__()
        self.layer = nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], classes)

    def forward(self, images):
        if self.training and len(images) > 2:  # not when the configuration is checked
            self.act()
        return self.layer(images.flatten(1))

    def act(self):
        pass


class Suicide(Net):
    def act(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Glutton(Net):
    def act(self):
        raise MemoryError("cannot allocate 640 GiB")


class Clumsy(Net):
    def act(self):
        raise RuntimeError("a bug of the user's")


class Slow(Net):
    """Whose steps are counted, and take their time as long as there is a file "slow"."""

    def act(self):
        with open("steps", "a") as file:
            file.write(".")
        if os.path.exists("slow"):
            time.sleep(0.02)


class Endless(Net):
    """Whose epochs take longer than anybody waits."""

    def act(self):
        time.sleep(3600)
'''


@pytest.fixture
def project(tmp_path):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "mine.py").write_text(MODELS)
    new_database(tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def launch(project):
    commands = []

    def start(*arguments):
        commands.append(Command(project, *arguments))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


def specifications(project):
    """(folder, run.json) of every run."""
    return [(folder, json.loads((folder / "run.json").read_text())) for folder in folders(project)]


def final(project):
    """What must be the same however often a sweep was killed: statuses, and every point with its value."""
    points = curves(project)
    assert {key: values for key, values in points.items() if len(values) != 1} == {}
    return children(project), points


def tear(path):
    """As a kill in the middle of a write leaves a file."""
    with path.open("ab") as file:
        file.write(b'{"kind":"epoch","time":17')


def test_a_sweep_killed_again_and_again_ends_as_if_nothing_had_happened(project, launch, tmp_path_factory):
    write_study(project, epochs=25, images=1000)
    draw = random.Random(20)

    def session(kill, *arguments):
        """Go on until something new is recorded, a little further, and die."""
        before = epochs_of(project)
        command = launch("sweep", "faults", "hardware.workers=1", *arguments)
        wait_until(lambda: epochs_of(project) > before or not command.running, seconds=60)
        time.sleep(draw.uniform(0.0, 0.5))
        kill(command)
        return command

    everything = lambda command: command.signal(signal.SIGKILL)  # noqa: E731
    session(everything, "hardware.checkpoint=0")
    session(everything, "hardware.checkpoint=1000")
    for path in project.glob(".fanin/faults/runs/*/spool.jsonl"):
        tear(path)
    coordinator = session(lambda command: command.process.kill(), "hardware.checkpoint=0")
    assert "cut a torn record" in coordinator.output
    wait_until(lambda: not coordinator.survivors, seconds=2)  # workers end by themselves
    last = launch("sweep", "faults", "hardware.workers=1")
    assert last.end() == 0, last.output
    attempts = [spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)]
    assert sum(attempts) > len(attempts), "nothing was interrupted: the kills came too late to show anything"

    other = tmp_path_factory.mktemp("undisturbed")
    for name in ("conf", "sweeps"):
        (other / name).symlink_to(project / name)
    new_database(other / "mlflow.db")
    undisturbed = Command(other, "sweep", "faults", "hardware.workers=2")
    assert undisturbed.end() == 0, undisturbed.output
    found, expected = final(project), final(other)
    assert len(found[1]) > 4 * 25 * 4
    assert found[0] == {run.name: ["FINISHED"] for run in folders(project)} == expected[0]
    assert found[1] == expected[1]
    assert leaderboard(last.output) == leaderboard(undisturbed.output)


def test_a_worker_that_dies_is_named_and_its_run_retried_while_the_others_go_on(project, launch):
    write_study(project, epochs=150, images=400)
    command = launch("sweep", "faults", "hardware.workers=2", "hardware.patience=5", "tracking=none")
    done = set()
    for number, cause in (
        (signal.SIGKILL, "killed by SIGKILL (out of memory, or killed by hand)"),
        (signal.SIGSEGV, "killed by SIGSEGV (crash in native code)"),
        (signal.SIGSTOP, "hung (no record for 5 s)"),
    ):
        worker, run = command.worker_of(lambda run: run.name not in done)
        done.add(run.name)
        name = json.loads((run / "run.json").read_text())["name"]
        others = [one for one in command.workers if one.pid != worker.pid]
        os.kill(worker.pid, number)
        began = time.monotonic()
        command.wait_for(f"{name}: worker {cause}; tried again (1 of 2)", seconds=20)
        assert time.monotonic() - began < 2 + 5 * (number == signal.SIGSTOP)
        assert all(one.is_running() for one in others)
    assert command.end() == 0, command.output
    attempts = {run.name: spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)}
    assert attempts == {run.name: 1 + (run.name in done) for run in folders(project)}
    assert "This session: 4 finished." in command.output


def test_a_run_that_kills_every_worker_fails_with_the_reason_and_the_rest_goes_on(project, launch):
    write_study(project, initializers="he_normal", replicates=1, epochs=2)
    models = "mine.Suicide,mine.Glutton,mine.Clumsy,mine.Net"
    choice = ("model=softmax", f"model._target_={models}", "initializer=he_normal", "hardware.workers=1")
    command = launch("sweep", "faults", *choice)
    assert command.end() == 1, command.output
    ends = {run["overrides"]["model._target_"]: outcome(folder) for folder, run in specifications(project)}
    assert {model: (end.status, end.reason) for model, end in ends.items()} == {
        "mine.Suicide": ("FAILED", "worker killed by SIGSEGV (crash in native code), 3 times in a row"),
        "mine.Glutton": ("FAILED", "MemoryError: cannot allocate 640 GiB"),
        "mine.Clumsy": ("FAILED", "RuntimeError: a bug of the user's"),
        "mine.Net": ("FINISHED", None),
    }
    assert sorted(sum(children(project).values(), [])) == ["FAILED", "FAILED", "FAILED", "FINISHED"]
    for cause in ("SIGSEGV (crash in native code)", "MemoryError: cannot allocate 640 GiB"):
        tries = [f"{cause}; tried again ({n} of 2)" in command.output for n in (1, 2, 3)]
        assert tries == [True, True, False]
    assert not command.survivors


STEPS = 10  # an epoch: 200 images in batches of 20
SLOW = ("model=softmax", "model._target_=mine.Slow")


def test_ctrl_c_ends_a_sweep_in_final_states_and_so_does_sigterm_and_nothing_is_trained_twice(project, launch):
    write_study(project, epochs=100, replicates=1)
    (project / "slow").touch()
    choice = ("sweep", "faults", *SLOW, "hardware.workers=2", "hardware.checkpoint=1000")
    for number in (signal.SIGINT, signal.SIGTERM):
        recorded = epochs_of(project)
        command = launch(*choice)
        wait_until(lambda r=recorded, c=command: epochs_of(project) > r + 5 or not c.running, seconds=60)
        wait_until(lambda c=command: len(statuses(project)) == 3 or not c.running, seconds=60)
        began = time.monotonic()
        command.signal(number)
        assert command.end() == 130, command.output
        assert time.monotonic() - began < 10
        assert sum(statuses(project).values(), []) == ["KILLED"] * 3, command.output
        assert all(outcome(run).reason.startswith("interrupted") for run in folders(project))
        wait_until(lambda c=command: not c.survivors, seconds=2)
    (project / "slow").unlink()
    last = launch(*choice)
    assert last.end() == 0, last.output
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)}
    assert {len(values) for values in curves(project).values()} == {1}
    assert len((project / "steps").read_text()) == 2 * 100 * STEPS


def test_a_run_whose_worker_died_goes_on_from_its_checkpoint_and_without_one_from_the_start(project, launch):
    write_study(project, initializers="he_normal", epochs=15, replicates=1)
    for checkpoint in (0, 1000):
        (project / "slow").touch()
        name = f"every{checkpoint}"
        names = (f"study.name={name}", f"hardware.checkpoint={checkpoint}", "tracking=none")
        command = launch("sweep", "faults", *SLOW, *names)
        wait_until(lambda n=name, c=command: epochs_of(project, n) > 6 or not c.running, seconds=60)
        worker = command.workers[0]
        worker.suspend()  # so that it is dead when its steps are counted
        before = len((project / "steps").read_text())
        assert before > 5 * STEPS
        (project / "slow").unlink()
        worker.kill()
        assert command.end() == 0, command.output
        trained = len((project / "steps").read_text())
        if checkpoint == 0:
            assert 15 * STEPS <= trained <= 15 * STEPS + 2 * STEPS
        else:
            assert trained == 15 * STEPS + before
        (project / "steps").unlink()


@pytest.mark.slow
def test_what_does_not_stop_in_time_is_killed_and_a_second_ctrl_c_does_not_wait(project, launch):
    write_study(project, replicates=1)
    endless = ("sweep", "faults", "model=softmax", "model._target_=mine.Endless", "tracking=none")
    for signals, seconds in ((1, 10), (2, 2)):
        command = launch(*endless)
        wait_until(lambda c=command: len(list(open_runs(project))) == 2 or not c.running, seconds=60)
        began = time.monotonic()
        for _ in range(signals):
            command.signal(signal.SIGINT)
            time.sleep(0.2)  # the kernel merges signals that are pending
        assert command.end() == 130, command.output
        assert time.monotonic() - began < seconds
        wait_until(lambda c=command: not c.survivors, seconds=2)
    assert len(list(open_runs(project))) == 2  # the second time, nobody had the time to write an end
