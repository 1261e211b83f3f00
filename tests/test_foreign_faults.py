"""Jobs of foreign programs that fail, are interrupted or cannot be: named, tried again, gone on with, refused."""

import math
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_program import BOWL, DEADLINE, best, board, calls, command, results, sweep, wait_for, write

from fanin.errors import ConfigError
from fanin.sweep.foreign import as_metrics, settings_of

# ---- jobs that fail ----


FAILING = """
@hydra.main(**BASE, config_path=".", config_name="config")
def main(cfg):
    note(cfg.x)
    if cfg.x == 1:
        raise ValueError("no such thing as one\\nand more")
    if cfg.x == 2:
        return None
    if cfg.x == 3:
        return float("nan")
    if cfg.x == 4:
        sys.exit(3)
    if cfg.x == 5:
        os.kill(os.getpid(), 9)
    return cfg.x

main()
"""


def test_a_job_that_fails_is_named_with_its_reason_and_the_others_go_on(folder: Path) -> None:
    write(folder, FAILING)
    done = sweep(folder, "hydra/sweeper=grid", "x=1,2,3,4,5,6,7", code=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("fanin:")]
    reasons = {line.split(" failed: ")[0]: line.split(" failed: ")[1] for line in errors}
    assert reasons.pop("fanin: x=1") == "ValueError: no such thing as one"
    assert "must return a number" in reasons["fanin: x=2"] and "None" in reasons.pop("fanin: x=2")
    assert "sys.exit(3)" in reasons.pop("fanin: x=4")
    assert "SIGKILL" in reasons["fanin: x=5"] and "3 times in a row" in reasons.pop("fanin: x=5")
    assert not reasons
    assert calls(folder) == ["1", "2", "3", "4", "5", "5", "5", "6", "7"]
    # where it was raised, in the program's own file; on the screen, and in the job's log
    log = (results(folder) / "0" / "app.log").read_text()
    for text in (done.stdout + done.stderr, log):
        assert 'raise ValueError("no such thing as one' in text
    assert "run_job" not in done.stdout + done.stderr
    # what is not a number is the worst there is, and is called diverged
    assert best(folder) == {"name": "fanin", "best_params": {"x": 6}, "best_value": 6.0}
    assert "diverged" in done.stdout


def test_the_same_command_tries_again_what_failed_and_only_that(folder: Path) -> None:
    body = """
    @hydra.main(**BASE, config_path=".", config_name="config")
    def main(cfg):
        note(cfg.x)
        if cfg.x == 2 and not (BESIDE / "cured").exists():
            raise OSError("the disk is full")
        return cfg.x

    main()
    """
    write(folder, body)
    arguments = ("hydra/sweeper=random", "x=1,2,3")
    failed = sweep(folder, *arguments, code=1)
    assert "x=2 failed: OSError: the disk is full" in failed.stderr
    (folder / "cured").touch()
    sweep(folder, *arguments)
    assert calls(folder) == ["1", "2", "2", "3"]


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.array(0.25), 0.25),
        (np.array([0.25]), 0.25),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1.5], requires_grad=True), 1.5),
        ([3], 3.0),
    ],
)
def test_whatever_is_a_number_counts_as_one(returned: Any, value: float) -> None:
    assert as_metrics(returned, ["objective"]) == {"objective": value}


def test_several_objectives_come_as_a_tuple_list_or_array() -> None:
    for returned in [(1, 2), [1, np.float64(2)], np.array([1, 2]), torch.tensor([1.0, 2.0])]:
        assert as_metrics(returned, ["a", "b"]) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_diverged(number: float) -> None:
    assert as_metrics(number, ["objective"])["diverged"] == 1.0
    assert as_metrics((1.0, number), ["a", "b"])["diverged"] == 1.0


@pytest.mark.parametrize("returned", [None, "0.5", {"loss": 1}, (1, 2), [], np.array([1, 2]), object()])
def test_what_is_no_number_is_refused_with_what_it_is(returned: Any) -> None:
    with pytest.raises(ConfigError, match="must return a number; it returned"):
        as_metrics(returned, ["objective"])


# ---- interrupted, and gone on with ----


WAITING = """
import time

@hydra.main(**BASE, config_path=".", config_name="config")
def main(cfg):
    note(cfg.x)
    while cfg.x >= 3 and not (BESIDE / "go").exists():
        time.sleep(0.02)
    return (cfg.x - 2.5) ** 2

main()
"""


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_after_a_kill_of_everything_the_same_command_finishes_the_rest(folder: Path, sampler: str) -> None:
    write(folder, WAITING, config="x: 1\n")
    arguments = (f"hydra/sweeper={sampler}", "x=1,2,3,4", "hydra.sweeper.workers=2")
    running = subprocess.Popen(
        command("-m", *arguments), cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    spools = folder / ".fanin" / "app" / "runs"
    wait_for(lambda: {"3", "4"} <= set(calls(folder)), "two jobs that wait")
    ended = sum('"end"' in path.read_text() for path in spools.glob("*/spool.jsonl"))
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = calls(folder)
    assert before == ["1", "2", "3", "4"] and ended == 2
    (folder / "go").touch()
    done = sweep(folder, *arguments)
    assert calls(folder) == ["1", "2", "3", "3", "4", "4"]
    table = sorted(tuple(line.split()[1:3]) for line in board(done.stdout))
    assert table == [("1", "2.2500"), ("2", "0.2500"), ("3", "0.2500"), ("4", "2.2500")]


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(folder: Path) -> None:
    write(folder, WAITING, config="x: 1\n")
    arguments = ("hydra/sweeper=grid", "x=1,2,3", "hydra.sweeper.workers=1")
    running = subprocess.Popen(
        command("-m", *arguments), cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: "3" in calls(folder), "a job that waits")
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=DEADLINE)
    assert running.returncode == 130 and "Traceback" not in errors
    assert "goes on from here" in errors
    (folder / "go").touch()
    sweep(folder, *arguments)
    assert calls(folder) == ["1", "2", "3", "3"]


# ---- refused before the first job ----


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hydra/sweeper/pruner=median"], "hydra.sweeper.pruner: a foreign program reports no value"),
        (["hydra.sweeper.max_epochs=3"], "hydra.sweeper.max_epochs: the epochs of a foreign program"),
        (["hydra.sweeper.sampler.n_startup_trials=many"], "hydra.sweeper.sampler.n_startup_trials: must be"),
        (["hydra/launcher=loky"], "hydra/launcher: fanin's sweepers run jobs on workers of their own"),
        (["x=interval(2,1)"], "x: an interval's lower end must be below"),
        (["z=1,2"], "z: no such key"),
    ],
)
def test_a_mistake_ends_as_one_line_with_exit_code_2(folder: Path, arguments: list[str], reason: str) -> None:
    write(folder, BOWL)
    (folder / "hydra" / "launcher").mkdir(parents=True)
    (folder / "hydra" / "launcher" / "loky.yaml").write_text("_target_: somewhere.LokyLauncher\n")
    done = sweep(folder, "hydra/sweeper=tpe", "x=interval(-4,4)", *arguments, code=2)
    assert done.stderr.startswith(f"fanin: {reason}") and done.stderr.count("\n") == 1, done.stderr
    assert not calls(folder) and not (folder / ".fanin").exists()


def test_a_function_that_cannot_travel_is_refused_with_the_way_out(folder: Path) -> None:
    write(folder, "import threading\nLOCK = threading.Lock()\n" + BOWL.replace("return", "LOCK\n    return"))
    done = sweep(folder, "hydra/sweeper=grid", "x=1,2", code=2)
    assert "main cannot be sent to the workers" in done.stderr and "inside the function" in done.stderr


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("workers", 0, "hydra.sweeper.workers: must be a whole number >= 1"),
        ("threads", None, "hydra.sweeper.threads: must be a whole number >= 1"),
        ("change", "extent", "did you mean 'extend'"),
        ("direction", "maximise", "did you mean 'maximize'"),
        ("direction", ["minimize", "down"], "hydra.sweeper.direction: 'down'"),
        ("direction", [], "at least one direction"),
    ],
)
def test_a_sweeper_field_out_of_range_is_refused_by_name(field: str, value: Any, reason: str) -> None:
    fields = {"study": None, "direction": "minimize", "seed": 0, "workers": None, "threads": 1}
    fields |= {"change": "refuse", "warm_start": None, field: value}
    with pytest.raises(ConfigError, match=reason):
        settings_of(SimpleNamespace(settings=fields))
