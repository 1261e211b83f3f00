"""Structured spaces end to end: zipped axes, explicit points and conditional axes, written in study files and
trained as a user would."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fanin.app import main

SMALL = {"epochs": 1, "stats": "off"}
GROUPS = {"/model": "softmax", "/data": "digits", "/tracking": "none"}


def write_study(project: Path, name: str, *, sweeper: str = "grid", **content: Any) -> None:
    """A study file of the smallest network there is, in a sweeps/ folder of the test's own."""
    if (project / "sweeps").is_symlink():
        (project / "sweeps").unlink()
        (project / "sweeps").mkdir()
    groups = GROUPS | {"/hydra/sweeper": sweeper}
    study = {"defaults": [{f"override {key}": choice} for key, choice in groups.items()], **SMALL, **content}
    text = yaml.safe_dump(study, sort_keys=False)
    (project / "sweeps" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


def trained(project: Path, study: str, *keys: str) -> list[tuple[Any, ...]]:
    """What the configurations of the study's runs have at `keys`, sorted."""
    found = []
    for path in (project / ".fanin" / study / "runs").glob("*/run.json"):
        spec = json.loads(path.read_text())
        assert '"FINISHED"' in path.with_name("spool.jsonl").read_text()
        leaves = spec["config"] | {"optimizer": spec["choices"]["optimizer"]}
        leaves |= {f"optimizer.{key}": value for key, value in spec["config"]["optimizer"].items()}
        found.append(tuple(leaves.get(key) for key in keys))
    return sorted(found, key=str)


def test_zipped_axes_walk_in_step_beside_others(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"optimizer": "sgd,adam", "optimizer.lr": "0.1,0.01", "batch_size": "50,100"}
    study = {"zip": [["optimizer", "optimizer.lr"]]}
    write_study(project, "zipped", study=study, hydra={"sweeper": {"params": params}})
    assert main(["sweep", "zipped"]) == 0
    assert trained(project, "zipped", "optimizer", "optimizer.lr", "batch_size") == [
        ("adam", 0.01, 100), ("adam", 0.01, 50), ("sgd", 0.1, 100), ("sgd", 0.1, 50),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    # what walks in step cannot be told apart: it is one factor
    factors = shown[shown.index("Which factor matters") :]
    assert "optimizer & optimizer.lr" in factors and "batch_size" in factors


def test_explicit_points_are_trained_as_they_are_written(project: Path) -> None:
    points = [{"optimizer": "sgd", "optimizer.lr": 0.5}, {"optimizer": "adam"}, {"epochs": 2}]
    write_study(project, "points", study={"points": points, "replicates": 2})
    assert main(["sweep", "points"]) == 0
    assert trained(project, "points", "optimizer", "optimizer.lr", "epochs", "replicate") == [
        ("adam", 0.001, 1, 0), ("adam", 0.001, 1, 1), ("adam", 0.001, 2, 0), ("adam", 0.001, 2, 1),
        ("sgd", 0.5, 1, 0), ("sgd", 0.5, 1, 1),
    ]  # fmt: skip


CONDITIONAL = {
    "study": {"when": {"optimizer.momentum": {"optimizer": ["momentum"]}}},
    "hydra": {"sweeper": {"params": {"optimizer": "momentum,adam", "optimizer.momentum": "0.5,0.8"}}},
}


def test_a_conditional_axis_exists_for_its_choice_only(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(project, "listed", **CONDITIONAL)
    assert main(["sweep", "listed"]) == 0
    expected = [("adam", None), ("momentum", 0.5), ("momentum", 0.8)]
    assert trained(project, "listed", "optimizer", "optimizer.momentum") == expected
    assert "\n1  " in capsys.readouterr().out.replace("#  ", "")  # a table with a gap is still a table
    write_study(project, "searched", sweeper="tpe", **CONDITIONAL)
    assert main(["sweep", "searched"]) == 0  # and ends by itself, after all three points
    assert trained(project, "searched", "optimizer", "optimizer.momentum") == expected


def test_the_same_file_again_trains_nothing_and_a_dry_run_lists_the_points(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project, "listed", **CONDITIONAL)
    assert main(["sweep", "listed", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "3 variants x 1 replicate = 3" in plan
    assert plan.count("  momentum 0.5  ") == plan.count("  momentum 0.8  ") == plan.count("  adam  ") == 1
    assert not (project / ".fanin" / "listed" / "runs").exists()
    assert main(["sweep", "listed"]) == 0
    first = capsys.readouterr().out
    assert main(["sweep", "listed"]) == 0
    again = capsys.readouterr().out
    assert "3 finished" in first and "nothing was left to do" in again


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        ({"zip": [["optimizer", "batch"]]}, "study.zip: 'batch' is not one of"),
        ({"zip": [["optimizer", "batch_size"]]}, "study.zip: zipped axes must have equally many values"),
        ({"points": [{"optimizer": "sgd"}, {"optimizer": "sgd"}]}, "study.points: the points must differ"),
        ({"when": {"batch_size": {"optimizer": ["sgd"]}}}, "study.when.batch_size.optimizer: 'sgd' is not"),
    ],
)  # fmt: skip
def test_a_structure_that_makes_no_sense_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], study: dict[str, Any], reason: str
) -> None:
    params = {} if "points" in study else {"optimizer": "momentum,adam", "batch_size": "50,60,70"}
    write_study(project, "wrong", study=study, hydra={"sweeper": {"params": params}})
    assert main(["sweep", "wrong"]) == 2
    assert reason in capsys.readouterr().err and not (project / ".fanin").exists()
