"""The best run's model in MLflow's registry: trained, registered, loaded back by MLflow without pickle."""

import sqlite3
import warnings
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch

from fanin import query, registry
from fanin.app import main
from fanin.build import load_model
from fanin.errors import ConfigError
from fanin.tracking import Tracker

SMALL = ["model=mlp_narrow", "data=digits", "data.n_train=200", "epochs=1", "stats=off", "study.name=two"]


def rows(project: Any, table: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        return database.execute(f"select * from {table}").fetchall()


def test_the_best_model_is_registered_once_and_mlflow_loads_it_to_the_last_digit(project: Any, capsys: Any) -> None:
    assert main(["train", "-m", *SMALL, "initializer=zeros,he_normal", "study.replicates=2"]) == 0
    points = len(rows(project, "metrics"))
    capsys.readouterr()
    assert main(["register", "two"]) == 0
    assert "two version 1 registered: initializer=he_normal r" in capsys.readouterr().out
    assert main(["register", "two"]) == 0
    assert "two version 1 was registered before" in capsys.readouterr().out
    assert len(rows(project, "model_versions")) == 1 and len(rows(project, "metrics")) == points
    with Tracker(project=project).translated() as client:  # as if another run had led in between
        client.delete_registered_model_alias("two", "best")
    assert main(["register", "two"]) == 0 and len(rows(project, "registered_model_aliases")) == 1

    from mlflow import pytorch, set_tracking_uri

    runs = query.runs("two", project=project)
    best = runs[runs["initializer"] == "he_normal"].sort_values("val/accuracy").iloc[-1]
    folder = project / "mlartifacts" / "two" / best["run_id"] / "artifacts"
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = pytorch.load_model("models:/two@best")
    finally:
        set_tracking_uri(None)
    with torch.no_grad():
        found, wanted = loaded(images), load_model(folder, "last")(images)
    assert torch.equal(found, wanted)
    files = sorted(path.name for path in (project / "mlartifacts" / "two" / "models").rglob("*") if path.is_file())
    assert "model.pt2" in files and not [name for name in files if name.endswith((".pth", ".pkl"))]


def table(**columns: Any) -> pandas.DataFrame:
    state = {"status": "FINISHED", "reason": None, "diverged": False, "seconds": 1.0, "replicate": 0}
    return pandas.DataFrame(state | columns)


ABOUT: Any = SimpleNamespace(metric="val/loss", direction="minimize", swept=("initializer",))


def test_the_best_run_is_the_best_of_the_leading_variant_and_never_one_that_diverged() -> None:
    """b has the single best value, a the best mean."""
    runs = table(initializer=list("aaabb"), replicate=[0, 1, 2, 0, 1], run_id=list("12345"))
    runs["val/loss"] = [0.3, 0.2, 0.25, 0.1, 0.9]
    best = registry.find_best(runs, ABOUT)
    assert best is not None and best["run_id"] == "2"
    runs["diverged"] = [False, True, False, False, False]
    best = registry.find_best(runs.assign(initializer="a"), ABOUT)
    assert best is not None and best["run_id"] == "4"


@pytest.mark.parametrize("spoil", [{"status": "RUNNING"}, {"val/loss": float("nan")}, {"diverged": True}])
def test_without_a_finished_run_nothing_is_the_best(spoil: dict[str, Any]) -> None:
    runs = table(initializer=list("ab"), run_id=list("12"), **{"val/loss": [0.1, 0.2]})
    assert registry.find_best(runs.assign(**spoil), ABOUT) is None
    assert registry.find_best(runs.drop(columns="val/loss"), ABOUT) is None


@pytest.mark.parametrize("study", ["tow", "runs"])
def test_a_study_that_is_not_there_or_has_no_finished_run_is_refused(
    study: str, project: Any, monkeypatch: Any
) -> None:
    if study == "runs":
        monkeypatch.setattr(query, "about", lambda *_, **__: ABOUT)
        monkeypatch.setattr(query, "runs", lambda *_, **__: table(initializer=["a"], run_id=["1"], status="FAILED"))
    with pytest.raises(ConfigError, match="no run has finished" if study == "runs" else "database"):
        registry.register(study, project=project)
