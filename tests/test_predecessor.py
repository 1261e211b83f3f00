"""A search that starts from another study: its default first, then the other's best points."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from plans import Play, Result, grid, make_study, open_folder
from processes import folders

from fanin import spool
from fanin.app import main
from fanin.errors import ConfigError
from fanin.sweep.folder import StudyFolder
from fanin.sweep.grid import GridPlan
from fanin.sweep.predecessor import best_points, find_predecessor, queue_best
from fanin.sweep.search import Search
from fanin.sweep.study import Study


def played(project: Path, name: str, study: Study, train: Any) -> Path:
    """The folder of a grid study that has been run."""
    folder = StudyFolder(project / ".fanin" / name)
    folder.admit(study.identity(), extend=False)
    Play(train).run(GridPlan(study, grid(study), folder))
    folder.close()
    return folder.path


def open_search(study: Study, project: Path, **settings: Any) -> Search:
    return Search(
        study.space, sampler={"name": "random"}, directions=["maximize"],
        storage=project / ".fanin" / study.name / "journal.log", name=study.name, seed=0, **settings,
    )  # fmt: skip


def asked(search: Search, count: int) -> list[dict[str, str]]:
    return [trial.values for _ in range(count) if (trial := search.ask())]


def test_the_points_of_a_grid_come_best_first_without_those_that_failed_or_diverged(tmp_path: Path) -> None:
    def train(values: dict[str, Any], replicate: int) -> Any:
        if values["a"] == 4:
            return Result([0.99], status="FAILED", reason="broken")
        return {1: 0.5, 2: 0.8, 3: math.nan, 5: [0.6, 0.9][replicate]}[values["a"]]

    source = played(tmp_path, "first", make_study({"a": "1,2,3,4,5"}, replicates=2), train)
    assert best_points(source) == [{"a": "2"}, {"a": "5"}, {"a": "1"}]  # 0.8, (0.6 + 0.9) / 2, 0.5


def test_a_search_begins_with_the_default_and_then_the_best_of_a_grid_once(tmp_path: Path) -> None:
    listed = make_study({"a": "0.25,0.5,0.75", "b": "1,2"})
    source = played(tmp_path, "first", listed, lambda values, _: values["a"] + values["b"] / 100)
    study = make_study({"a": "interval(0,0.6)", "c": "x,y"}, sampler={"name": "random"}, warm_start="first")
    search = open_search(study, tmp_path, defaults=study.default)
    assert find_predecessor(study, project=tmp_path) == source
    # each of 0.5 and 0.25 was best with b=2, then with b=1, which this space does not know; 0.75 is outside
    assert queue_best(search, source) == 2
    points = asked(search, 4)
    assert points[0]["c"] == "x" and [point["a"] for point in points[1:3]] == ["0.5", "0.25"]
    again = open_search(study, tmp_path, defaults=study.default)
    assert queue_best(again, source) == 0


def test_a_search_begins_with_the_best_trials_of_another_search(tmp_path: Path) -> None:
    space = make_study({"a": "interval(0,1)"}, name="first", sampler={"name": "random"})
    first = open_search(space, tmp_path)
    trials = [first.ask() for _ in range(15)]
    for trial in trials:
        assert trial is not None
        first.tell(trial.number, float(trial.values["a"]))
    folder = StudyFolder(tmp_path / ".fanin" / "first")
    folder.admit(space.identity(), extend=False)
    folder.close()
    second = make_study({"a": "interval(0,1)"}, name="second", sampler={"name": "tpe"}, warm_start="first")
    source = find_predecessor(second, project=tmp_path)
    assert source is not None
    search = open_search(second, tmp_path)
    assert queue_best(search, source) == 10
    best = sorted((trial.values["a"] for trial in trials if trial), key=float, reverse=True)[:10]
    assert [point["a"] for point in asked(search, 10)] == best


def test_an_unknown_study_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    played(tmp_path, "learning_rate", make_study({"a": "1,2"}), lambda values, _: 0.5)
    open_folder(tmp_path).close()  # a folder without a question is none
    for name in ("learning_rates", "study"):  # and a study cannot start from itself
        study = make_study({"a": "interval(0,1)"}, sampler={"name": "tpe"}, warm_start=name)
        with pytest.raises(ConfigError, match=r"study.warm_start: .* is not one of: learning_rate") as error:
            find_predecessor(study, project=tmp_path)
        assert ("did you mean 'learning_rate'?" in str(error.value)) == (name == "learning_rates")
    with pytest.raises(ConfigError, match="a grid tries all its points anyway"):
        find_predecessor(make_study({"a": "1,2"}, warm_start="learning_rate"), project=tmp_path)


def test_a_study_that_warm_starts_does_so_from_the_command_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model=softmax", "data=digits", "tracking=none", "epochs=1", "stats=off"]
    grid_ = ["study.name=listed", "optimizer.lr=0.0001,0.02,0.03"]
    assert main(["train", "-m", *small, *grid_]) == 0
    search = ["study.name=searched", "hydra/sweeper=random", "hydra.sweeper.max_trials=4"]
    search += ["optimizer.lr=interval(0.0001,0.1)", "hardware.workers=1"]
    assert main(["train", "-m", *small, *search, "study.warm_start=lsited"]) == 2
    assert "did you mean 'listed'?" in capsys.readouterr().err
    assert not (project / ".fanin" / "searched").exists()
    assert main(["train", "-m", *small, *search, "study.warm_start=listed"]) == 0
    begun = [rate for _, rate in sorted(map(start_and_rate, folders(project, "searched")))]
    assert begun[0] == 0.001 and set(begun[1:3]) == {0.02, 0.03} and begun[3] == 0.0001


def start_and_rate(run: Path) -> tuple[int, float]:
    """When a run was begun, and with which learning rate."""
    records, _ = spool.read(run / "spool.jsonl")
    return records[0]["time"], json.loads((run / "run.json").read_text())["config"]["optimizer"]["lr"]
