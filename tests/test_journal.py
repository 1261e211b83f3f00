"""A search's journal as others read it: plain Optuna, and optuna-dashboard where it is installed."""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fanin import spool
from fanin.app import main

SEARCH = ["study.name=found", "model=softmax", "data=digits", "tracking=none", "stats=off", "epochs=2"]
SEARCH += ["hydra/sweeper=tpe", "hydra/sweeper/pruner=median", "hydra.sweeper.max_trials=4"]
SEARCH += ["hydra.sweeper.pruner.n_startup_trials=1", "hardware.workers=1", "initializer=he_normal,zeros"]
SEARCH += ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "batch_size=int(interval(20,100))"]


@pytest.fixture
def storage(project: Path) -> JournalStorage:
    """The journal of a search of real runs, opened as anybody would."""
    assert main(["train", "-m", *SEARCH]) == 0
    return JournalStorage(JournalFileBackend(str(project / ".fanin" / "found" / "journal.log")))


def runs(project: Path) -> dict[tuple[str, float, int], list[float]]:
    """Initializer, learning rate and batch size -> the validation accuracy of each epoch, from the spools."""
    found = {}
    for path in (project / ".fanin" / "found" / "runs").glob("*/run.json"):
        swept = json.loads(path.read_text())["overrides"]
        records, _ = spool.read(path.with_name("spool.jsonl"))
        curve = [one["metrics"]["val/accuracy"] for one in records if one["kind"] == "epoch" and one["epoch"]]
        found[swept["initializer"], swept["optimizer.lr"], swept["batch_size"]] = curve
    return found


def test_plain_optuna_reads_the_trials_with_their_parameters_values_and_curves(
    project: Path, storage: JournalStorage
) -> None:
    study = optuna.load_study(study_name="found", storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE"]
    trained = runs(project)
    assert len(study.trials) == len(trained) == 4
    for trial in study.trials:
        params = trial.params
        curve = trained[params["initializer"], params["optimizer.lr"], params["batch_size"]]
        assert trial.intermediate_values == dict(enumerate(curve, start=1))
        assert trial.value == curve[-1]  # of a pruned trial, Optuna says the last that was reported
        assert (trial.state.name == "PRUNED") == (len(curve) < 2)
    default = {"initializer": "he_normal", "optimizer.lr": 0.001, "batch_size": 100}
    assert study.trials[0].params == default
    frame = study.trials_dataframe()
    assert {"params_optimizer.lr", "params_initializer", "value", "state"} <= {*frame.columns}
    assert math.isfinite(study.best_value)


def get(app: Any, path: str) -> Any:
    """The JSON that a WSGI application answers to GET `path`."""
    said: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "wsgi.input": BytesIO(), "wsgi.errors": BytesIO(), "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(app(environment, lambda status, headers, *_: said.append(status)))
    assert said == ["200 OK"], (said, body)
    return json.loads(body)


def test_optuna_dashboard_shows_the_search(project: Path, storage: JournalStorage) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    app = dashboard.wsgi(storage)
    (summary,) = get(app, "/api/studies")["study_summaries"]
    assert summary["study_name"] == "found"
    shown = get(app, f"/api/studies/{summary['study_id']}")
    assert sorted(len(trial["intermediate_values"]) for trial in shown["trials"]) == sorted(
        len(curve) for curve in runs(project).values()
    )
    names = {space["name"] for space in shown["union_search_space"]}
    assert names == {"initializer", "optimizer.lr", "batch_size"}
