"""`fanin register`: the best run's model in MLflow's registry, as MLflow shows, loads and serves it.

The model is exported by torch.export (pt2): a graph with its weights and without pickle, so that loading it runs
no code of whoever made it. The weights are those that the test set was shown to.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
import torch
import yaml

from fanin import query
from fanin.build import load_model
from fanin.errors import ConfigError
from fanin.leaderboard import counted, leaderboard
from fanin.noise import pooled
from fanin.query import About
from fanin.tracking import Tracker

FILES = ("config.yaml", "last.pt", "best.pt")
ALIAS = "best"
IMAGES = 2  # that the export sees: a batch of one would be taken for a constant


@dataclass(frozen=True)
class Registered:
    """A version of a registered model: of which run it is, the run's value, and whether it is new."""

    name: str
    version: int
    run: str
    value: float
    new: bool

    def __str__(self) -> str:
        said = "registered" if self.new else "was registered before"
        address = f"models:/{self.name}@{ALIAS}"
        return f"{self.name} version {self.version} {said}: {self.run}, {self.value:.4f}\n{address}"


def register(study: str, *, project: Path) -> Registered:
    """Register the model of the study's best run under the study's name; asked again, it is the same version.

    Raises ConfigError for a study without a finished run, and for a model that cannot be exported.
    """
    about, runs = query.about(study, project=project), query.runs(study, project=project)
    best = find_best(runs, about)
    if best is None:
        raise ConfigError(f"{study}: no run has finished yet, so that none is the best")
    tracker, run, name, value = Tracker(project=project), best["run_id"], best["name"], best[about.metric]
    known = _versions(tracker, study, run)
    if known:
        with tracker.translated() as client:  # another run may have been the best one meanwhile
            client.set_registered_model_alias(study, ALIAS, str(max(known)))
        return Registered(study, max(known), name, value, new=False)
    with tempfile.TemporaryDirectory() as folder:
        files = _fetch(tracker, study, run, Path(folder))
        made = _register(tracker, about, study, run, files)
    return Registered(study, made, name, value, new=True)


def find_best(runs: pandas.DataFrame, about: About) -> "pandas.Series[Any] | None":
    """Of the runs of the variant that leads the leaderboard, the one with the best value; None before one has
    finished."""
    if about.metric not in runs:
        return None
    classes = int(runs["data.classes"].iloc[0]) if "data.classes" in runs else 2
    how: dict[str, Any] = {"metric": about.metric, "direction": about.direction, "classes": classes}
    runs, by = pooled(runs, about.swept)
    first = leaderboard(runs, by=by, **how).iloc[0]
    measured = runs[about.metric].notna()
    runs = counted(runs, **how)
    chosen = runs["complete"] & ~runs["diverged"] & measured
    for key in by or ["variant"]:
        chosen &= runs[key].astype(object).map(str) == str(first[key])
    values = runs.loc[chosen, about.metric]
    if values.empty:
        return None
    best = values.argmax() if about.direction == "maximize" else values.argmin()
    return runs[chosen].iloc[int(best)]


def _versions(tracker: Tracker, name: str, run: str) -> list[int]:
    with tracker.translated() as client:
        found = client.search_model_versions(f"name = '{name}'")
    return [int(one.version) for one in found if one.run_id == run]


def _fetch(tracker: Tracker, study: str, run: str, folder: Path) -> Path:
    """The files of a run that its model is made of."""
    with tracker.translated() as client:
        there = {file.path for file in client.list_artifacts(run)}
        if not {*FILES} <= there:
            raise ConfigError(f"{study}: its best run has no {' and no '.join(sorted({*FILES} - there))}")
        for path in FILES:
            client.download_artifacts(run, path, str(folder))
    return folder


def _register(tracker: Tracker, about: About, name: str, run: str, files: Path) -> int:
    """Log the model with its run, and make it the newest and best version of the registered model `name`."""
    from mlflow.entities import LoggedModelOutput

    config = yaml.safe_load((files / "config.yaml").read_text())
    try:
        model, images = load_model(files, config["test_weights"]), torch.zeros(IMAGES, *config["data"]["shape"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{name}: its best run was recorded by another version of fanin ({error})") from error
    with tracker.translated() as client, quiet():
        logged = client.create_logged_model(client.get_run(run).info.experiment_id, name, source_run_id=run)
        try:
            _save(model, files / "model", images=images, logged=logged.model_id, run=run)
        except (RuntimeError, TypeError, ValueError) as error:
            client.finalize_logged_model(logged.model_id, "FAILED")
            first = str(error).strip().split("\n")[0]
            raise ConfigError(f"{name}: torch.export cannot take the model of its best run: {first}") from error
        client.log_model_artifacts(logged.model_id, str(files / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
        for point in client.get_metric_history(run, about.metric)[-1:]:  # once more the same: the run's stays one point
            when, step = point.timestamp, point.step
            client.log_outputs(run, [LoggedModelOutput(logged.model_id, step)])
            client.log_metric(run, about.metric, point.value, when, step, model_id=logged.model_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=about.question)
        made = client.create_model_version(name, f"models:/{logged.model_id}", run, model_id=logged.model_id)
        client.set_registered_model_alias(name, ALIAS, made.version)
    return int(made.version)


def _save(model: torch.nn.Module, target: Path, *, images: torch.Tensor, logged: str, run: str) -> None:
    """As MLflow's own log_model does it."""
    from mlflow import pytorch
    from mlflow.models import Model, infer_signature

    example = images.numpy()
    with torch.no_grad():
        signature = infer_signature(example, model(images).numpy())
    pytorch.save_model(
        model,
        str(target),
        mlflow_model=Model(model_id=logged, run_id=run),
        signature=signature,
        input_example=example,
        serialization_format="pt2",
        pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "mlflow")],
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what MLflow and torch have to say about exporting: it is about their own insides."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
