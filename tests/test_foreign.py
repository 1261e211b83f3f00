"""Multiruns of programs that have never heard of fanin: scripts of a user's, run as a user runs them.

Each program writes what it does into a file `calls` beside it, one line a job.
"""

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fanin.errors import ConfigError
from fanin.sweep.foreign import as_metrics, settings_of

DEADLINE = 60.0  # seconds; nothing here takes ten

HEAD = """\
import os, sys
from pathlib import Path
import hydra

BESIDE = Path(__file__).resolve().parent
BASE = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}  # deprecated in 1.4

def note(*words):
    with open(BESIDE / "calls", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")
"""

BOWL = """
@hydra.main(**BASE, config_path=".", config_name="config")
def main(cfg):
    note(cfg.x, cfg.y)
    return (cfg.x - 1) ** 2 + cfg.y

main()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def write(folder: Path, body: str, *, config: str | None = "x: 3\ny: 0.5\n", name: str = "app.py") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(HEAD + textwrap.dedent(body))
    if config is not None:
        (folder / name).with_name("config.yaml").write_text(textwrap.dedent(config))


def command(*arguments: str, program: tuple[str, ...] = ("app.py",)) -> list[str]:
    return [sys.executable, *program, *arguments]


def sweep(folder: Path, *arguments: str, program: tuple[str, ...] = ("app.py",), code: int = 0) -> Any:
    """Run the program with -m and `arguments`; returns the ended process, whose exit code must be `code`."""
    done = subprocess.run(
        command("-m", *arguments, program=program),
        cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert code == 1 or "Traceback" not in done.stderr, done.stderr
    return done


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def results(folder: Path) -> Path:
    """The newest sweep folder."""
    return max((folder / "multirun").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)


def best(folder: Path) -> Any:
    return yaml.safe_load((results(folder) / "optimization_results.yaml").read_text())


def board(stdout: str) -> list[str]:
    """The lines of the leaderboard's body, without its column of seconds."""
    lines = stdout[stdout.index("-  ") :].splitlines()
    return [line.rsplit(maxsplit=1)[0] for line in lines[1 : lines.index("")]]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


# ---- the same as under Hydra's own sweeper ----


SAME = """
from beside import square

@hydra.main(**BASE, config_path="conf", config_name="main")
def main(cfg):
    job = hydra.core.hydra_config.HydraConfig.get()
    print("printed by", cfg.x, cfg.db.name)
    note(cfg.x, cfg.db.name, job.job.num, job.job.name, cfg.number, Path(job.runtime.output_dir).name,
         Path(cfg.where).is_dir(), len(cfg.year), job.job.override_dirname, sorted(job.overrides.task))
    return square(cfg.x)
"""


def test_jobs_get_the_configuration_number_and_folder_that_hydra_itself_gives_them(folder: Path) -> None:
    main = "x: 3\nnumber: ${hydra:job.num}\nwhere: ${hydra:runtime.output_dir}\nyear: ${now:%Y}\n"
    main += "defaults: [_self_, db: small]\n"
    write(folder, SAME + "\nmain()\n", config=None)
    (folder / "beside.py").write_text("def square(x):\n    return x**2\n")
    (folder / "conf" / "db").mkdir(parents=True)
    (folder / "conf" / "main.yaml").write_text(main)
    for name in ("small", "large"):
        (folder / "conf" / "db" / f"{name}.yaml").write_text(f"name: {name}\n")
    swept = ("x=1,-2,3", "db=small,large")
    sweep(folder, *swept, "hydra.sweep.dir=theirs")
    expected = calls(folder)
    (folder / "calls").unlink()
    done = sweep(folder, *swept, "hydra.sweep.dir=ours", "hydra/sweeper=grid")
    assert len(expected) == 6 and calls(folder) == expected
    for number in range(6):
        for file in ("config.yaml", "overrides.yaml"):
            path = Path(str(number), ".hydra", file)
            assert (folder / "ours" / path).read_text() == (folder / "theirs" / path).read_text()
        assert (folder / "ours" / str(number) / "app.log").exists()
    assert {"multirun.yaml", "optimization_results.yaml"} <= set(os.listdir(folder / "ours"))
    assert "printed by -2 large" in done.stdout
    assert yaml.safe_load((folder / "ours" / "optimization_results.yaml").read_text()) == {
        "name": "fanin", "best_params": {"x": 1, "db": "small"}, "best_value": 1.0,
    }  # fmt: skip
    assert "best: x=1 db=small" in done.stdout


def test_a_program_may_lie_elsewhere_be_a_module_and_have_everything_in_its_main(folder: Path) -> None:
    body = """
    import multiprocessing, pickle
    from dataclasses import dataclass
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf
    from .beside import square

    OmegaConf.register_new_resolver("twice", lambda x: 2 * x)

    @dataclass
    class Settings:
        x: int = 1
        double: int = "${twice:${x}}"
        needed: float = "???"

    @dataclass
    class Model:
        weight: float

    ConfigStore.instance().store("settings", Settings)

    @hydra.main(**BASE, config_name="settings")
    def main(cfg):
        assert Path.cwd() == Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
        Path("model.pkl").write_bytes(pickle.dumps(Model(cfg.x)))
        child = multiprocessing.get_context("fork").Process(target=note, args=("child of", cfg.x, cfg.double))
        child.start()
        child.join()
        from .beside import cube
        return square(cfg.x) + cube(cfg.needed)

    if __name__ == "__main__":
        main()
    """
    write(folder, body, config=None, name="inner/program/app.py")
    (folder / "inner" / "program" / "beside.py").write_text(
        "def square(x):\n    return x**2\n\ndef cube(x):\n    return x**3\n"
    )
    arguments = ("x=2,3", "needed=1,2", "hydra.job.chdir=True", "hydra/sweeper=grid")
    sweep(folder / "inner", *arguments, program=("-m", "program.app"))
    expected = ["child of 2 4"] * 2 + ["child of 3 6"] * 2
    assert calls(folder / "inner" / "program") == expected
    assert best(folder / "inner") == {
        "name": "fanin", "best_params": {"x": 2, "needed": 1.0}, "best_value": 5.0,
    }  # fmt: skip
    saved = (results(folder / "inner") / "0" / "model.pkl").read_bytes()
    with pytest.raises(AttributeError, match="Model.*__main__"):  # as the program's own pickle would be
        pickle.loads(saved)


def test_a_script_of_another_folder_finds_the_modules_beside_it(folder: Path) -> None:
    body = "from beside import square\n" + BOWL.replace("(cfg.x - 1) ** 2", "square(cfg.x - 1)")
    write(folder, body, name="sub/app.py")
    (folder / "sub" / "beside.py").write_text("def square(x):\n    return x * x\n")
    sweep(folder, "x=1,2", "hydra/sweeper=grid", program=("sub/app.py",))
    assert best(folder)["best_value"] == 0.5


def test_everything_may_be_said_in_the_configuration_file(folder: Path) -> None:
    config = """
    defaults: [_self_, {override hydra/sweeper: grid}]
    x: 3
    y: 0.5
    hydra: {mode: MULTIRUN, sweeper: {study: mine, direction: maximize, params: {x: "range(0,3)", y: "1,2"}}}
    """
    write(folder, BOWL, config=config)
    done = subprocess.run(command(), cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["0 1", "0 2", "1 1", "1 2", "2 1", "2 2"]
    assert best(folder) == {"name": "fanin", "best_params": {"x": 0, "y": 2}, "best_value": 3.0}
    assert (folder / ".fanin" / "mine").is_dir()


def test_the_program_of_the_documentation_does_what_it_says(folder: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "hydra.md").read_text()
    for name in ("app.py", "config.yaml"):
        (folder / name).write_text(text.split(f"# {name}\n")[1].split("```")[0])
    first = next(line for line in text.splitlines() if line.startswith("python app.py -m"))
    done = sweep(folder, *first.split()[3:])
    assert "best: x=1 kind=good" in done.stdout and best(folder)["best_value"] == 0.0


# ---- searching ----


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_runs_its_trials_starts_at_the_default_and_is_not_run_twice(folder: Path, sampler: str) -> None:
    write(folder, BOWL)
    arguments = (f"hydra/sweeper={sampler}", "x=interval(-4,4)", "y=0.25,0.5", "hydra.sweeper.max_trials=6")
    done = sweep(folder, *arguments, "hydra.sweeper.workers=1")
    made = (folder / "calls").read_text().splitlines()
    assert len(made) == 6 and made[0] == "3.0 0.5"
    values = {line: (float(line.split()[0]) - 1) ** 2 + float(line.split()[1]) for line in made}
    least = min(values, key=lambda line: values[line])
    found = best(folder)
    assert f"{found['best_params']['x']} {found['best_params']['y']}" == least
    assert found["best_value"] == pytest.approx(values[least])
    assert f"best: x={found['best_params']['x']} y={found['best_params']['y']}" in done.stdout
    again = sweep(folder, *arguments, "hydra.sweeper.workers=1")
    assert len(calls(folder)) == 6 and "nothing was left to do" in again.stdout
    assert "hydra.sweeper.change=new" in again.stdout  # else nobody would know why nothing runs
    assert board(again.stdout) == board(done.stdout) and best(folder) == found
    if sampler == "tpe":
        sweep(folder, *arguments, "hydra.sweeper.max_trials=8")
        assert len(calls(folder)) == 8


def test_two_objectives_end_in_the_points_that_no_other_one_beats(folder: Path) -> None:
    body = """
    @hydra.main(**BASE, config_path=".", config_name="config")
    def main(cfg):
        values = cfg.x**2, (cfg.x - 2) ** 2 + cfg.y
        note(*values)
        return values

    main()
    """
    write(folder, body)
    arguments = ("hydra/sweeper=nsgaii", "x=interval(-4,4)", "y=range(0,3)", "hydra.sweeper.max_trials=12")
    done = sweep(folder, *arguments, "hydra.sweeper.direction=[minimize,minimize]")
    made = [tuple(map(float, line.split())) for line in calls(folder)]
    front = sorted(one for one in made if not any(o[0] <= one[0] and o[1] <= one[1] and o != one for o in made))
    solutions = best(folder)["solutions"]
    assert len(made) == 12 and sorted(tuple(s["values"]) for s in solutions) == front
    for solution in solutions:
        x, y = solution["params"]["x"], solution["params"]["y"]
        assert solution["values"] == pytest.approx([x**2, (x - 2) ** 2 + y])
    table = done.stdout[done.stdout.index("Pareto front") :]
    assert table.splitlines()[2].split() == ["objective_0", "objective_1"]
    assert [line.split()[0] for line in table.splitlines()[3 : 3 + len(front)]] == [f"{a:.4g}" for a, _ in front]


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


# ---- one study, one question ----


def test_a_changed_question_is_refused_unless_it_extends_the_study_or_starts_it_over(folder: Path) -> None:
    write(folder, BOWL)
    sweep(folder, "hydra/sweeper=grid", "x=1,2")
    refused = sweep(folder, "hydra/sweeper=grid", "x=1,2,3", code=2)
    assert refused.stderr.startswith("fanin: study 'app' holds another question")
    assert "space.x: 1,2 -> 1,2,3" in refused.stderr and "--extend" not in refused.stderr
    assert "hydra.sweeper.change=extend" in refused.stderr and "hydra.sweeper.change=new" in refused.stderr
    assert calls(folder) == ["1 0.5", "2 0.5"]
    sweep(folder, "hydra/sweeper=grid", "x=1,2,3", "hydra.sweeper.change=extend")
    assert calls(folder) == ["1 0.5", "2 0.5", "3 0.5"]
    refused = sweep(folder, "hydra/sweeper=grid", "x=1,2,3", "y=1", "hydra.sweeper.change=extend", code=2)
    assert "config.y: 0.5 -> 1" in refused.stderr and "hydra.sweeper.change=extend adds" in refused.stderr
    sweep(folder, "hydra/sweeper=grid", "x=1,2", "y=1", "hydra.sweeper.change=new")
    assert calls(folder)[-5:] == ["1 0.5", "1 1", "2 0.5", "2 1", "3 0.5"]


# ---- workers ----


def test_jobs_run_beside_each_other_each_with_its_threads(folder: Path) -> None:
    body = """
    import time

    @hydra.main(**BASE, config_path=".", config_name="config")
    def main(cfg):
        (BESIDE / f"started {cfg.x}").touch()
        deadline = time.monotonic() + 30
        while len(list(BESIDE.glob("started *"))) < 3:
            assert time.monotonic() < deadline, "the others have not started"
            time.sleep(0.02)
        note(cfg.x, os.environ["OMP_NUM_THREADS"])
        return cfg.x

    main()
    """
    write(folder, body)
    sweep(folder, "hydra/sweeper=grid", "x=1,2,3", "hydra.sweeper.workers=3", "hydra.sweeper.threads=2")
    assert calls(folder) == ["1 2", "2 2", "3 2"]


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
