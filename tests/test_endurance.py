"""The long proof: a real sweep killed over and over, in every way there is, until nothing is left to kill."""

import random
import signal
import time

import pytest
from processes import Command, children, curves, epochs_of, folders, leaderboard, statuses
from projects import SLOW, new_project, write_study
from recorded import wait_until

from fanin import spool

# MLflow 3.17 uses a loader option that SQLAlchemy 2.1 deprecates: not ours to mend
pytestmark = pytest.mark.slow

KILLS = 24
CHOICE = ("sweep", "faults", *SLOW)


def everything(command, draw):
    command.signal(signal.SIGKILL)


def coordinator(command, draw):
    command.look()
    command.process.kill()


def fork_server(command, draw):
    servers = [one for one in command.look() if "forkserver" in " ".join(one.cmdline())]
    servers[0].kill()


def worker(command, draw):
    draw.choice(command.workers or [command.process]).kill()


def ctrl_c(command, draw):
    command.signal(signal.SIGINT)


def terminate(command, draw):
    command.signal(signal.SIGTERM)


# After some, the sweep goes on by itself; it is then killed with everything else a little later.
WAYS = [everything, everything, everything, coordinator, coordinator, fork_server, worker, worker, ctrl_c, terminate]


def found(folder):
    """A project with a study of twelve runs."""
    new_project(folder)
    write_study(folder, initializers="he_normal,xavier_uniform,zeros,orthogonal", replicates=3, epochs=40)
    return folder


def session(project, draw):
    """Start the sweep, strike at a random moment; returns the command when it has ended."""
    checkpoint = draw.choice([0, 0.5, 1000])
    command = Command(project, *CHOICE, f"hardware.workers={draw.choice([1, 2])}", f"hardware.checkpoint={checkpoint}")
    try:
        before = epochs_of(project)
        if draw.random() < 0.8:  # else anywhere from the first import on
            wait_until(lambda: epochs_of(project) > before or not command.running, seconds=120)
        time.sleep(draw.uniform(0.0, 2.0))
        for way in (draw.choice(WAYS), everything):
            if command.running:
                way(command, draw)
            deadline = time.monotonic() + draw.uniform(0.5, 2.0)
            while way in (fork_server, worker) and command.running and time.monotonic() < deadline:
                time.sleep(0.05)
            if way in (ctrl_c, terminate):
                assert command.end(seconds=60) == 130, command.output
        command.process.wait(60)
        wait_until(lambda: not command.survivors)
        return command
    finally:
        command.kill()


def test_a_sweep_killed_at_random_until_it_completes_equals_an_undisturbed_one(tmp_path):
    project = found(tmp_path / "killed")
    draw = random.Random(3)
    (project / "slow").write_text("0.01")
    for _ in range(KILLS):
        session(project, draw)
    (project / "slow").unlink()
    last = Command(project, *CHOICE)
    assert last.end(seconds=240) == 0, last.output

    other = found(tmp_path / "undisturbed")
    undisturbed = Command(other, *CHOICE, "hardware.workers=1")
    assert undisturbed.end(seconds=240) == 0, undisturbed.output

    runs = {run.name: ["FINISHED"] for run in folders(other)}
    assert len(runs) == 12
    assert children(project) == children(other) == runs
    assert {"RUNNING"}.isdisjoint(sum(statuses(project).values(), []))
    points, expected = curves(project), curves(other)
    assert {key: values for key, values in points.items() if len(values) != 1} == {}
    assert points == expected
    assert leaderboard(last.output) == leaderboard(undisturbed.output)
    attempts = [spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)]
    assert sum(attempts) >= 12 + KILLS / 3, "too few of the kills met a run"
