"""Multiruns of programs that have never heard of fanin: scripts of a user's, run as a user runs them.

Each program writes what it does into a file `calls` beside it, one line a job.
"""

import os
import pickle
import subprocess
from pathlib import Path

import pytest
import yaml
from foreign_program import BOWL, DEADLINE, best, board, calls, command, results, sweep, write

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
