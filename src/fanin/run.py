"""One run: configuration in, recorded result out."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch._dynamo  # an optimizer's first step imports it: here, the fork server does so once for all workers
import yaml
from torch import nn

from fanin import data, initializers, pictures, preflight, spool
from fanin.build import (
    Parts,
    build,
    build_model,
    check_metrics,
    initial_weights,
    initialize,
    initializer,
    load_dataset,
    part,
    rehearsal,
    resolve_device,
    streams_of,
)
from fanin.checkpoint import Progress, capture, restore
from fanin.diagnose import Classes, Finding, as_json, diagnose, fatal, label
from fanin.errors import ConfigError
from fanin.evaluation import Evaluation, evaluate
from fanin.histograms import HISTOGRAMS, collect
from fanin.memory import keep_freed_memory
from fanin.provenance import versions
from fanin.spool import Spool
from fanin.stats import BATCH_NORMS, LayerStats
from fanin.train import fit
from fanin.usage import Usage

# Held-out images that per-layer statistics look at: a share of the data set, as their cost is a share of an epoch's.
PROBE_SHARE, PROBE_LEAST, PROBE_MOST = 1 / 64, 64, 256


class Channel(Protocol):
    """How a run talks to whoever started it: `ask` waits for a verdict on the record, `send` does not;
    `stopped` says why the run should end with this epoch, if it should."""

    @property
    def stopped(self) -> str | None: ...
    def send(self, kind: str, payload: Any) -> None: ...
    def ask(self, kind: str, payload: Any) -> Any: ...


class Trainer:
    """A worker's handler: checks configurations, trains runs, and keeps prepared data from one to the next."""

    def __init__(self, *, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._environment = versions() | {"threads": str(threads)}
        self._prepared: tuple[str, data.Prepared] | None = None
        self._outlines: dict[str, data.Outline] = {}

    def __call__(self, kind: str, payload: Any, channel: Channel) -> Any:
        if kind == "check":
            return [self.complaint(config) for config in payload]
        if kind == "devices":
            return {"device": resolve_device(payload).type, "cuda": torch.cuda.device_count()}
        if kind == "outline":
            return self.outline(payload)
        if kind == "fetch":
            with part(payload, "data") as (loader, options):
                return data.fetch(loader, **options)
        if kind == "preflight":
            return [self.preflight(config) for config in payload]
        if kind == "estimate":
            return self.seconds_per_epoch(payload)
        if kind == "pretraining":
            return self.seconds_of_pretraining(payload)
        assert kind == "run", kind
        return self.run(payload, channel)

    def run(self, payload: Mapping[str, Any], channel: Channel) -> None:
        """Train one run and record it; its end is in the spool whichever way it ends."""
        folder = Path(payload["folder"])
        with Spool(folder / "spool.jsonl") as log:
            log.append("start")
            began = time.monotonic()
            try:
                end = self._train(payload, log, channel)
            except BaseException as error:  # recorded, then raised on: an interruption is not an Exception
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                log.append(
                    "end",
                    status=status,
                    reason=_reason(error),
                    metrics={},
                    step=0,
                    seconds=time.monotonic() - began,
                )
                raise
            log.append("end", **end)

    def complaint(self, config: Mapping[str, Any]) -> str | None:
        """What is wrong with a configuration, or None: everything is built once, on the meta device."""
        try:
            outline = self.outline(config)
            size = config["data"]["n_train"] or outline.train - config["data"]["val"]
            parts = build(config, shape=outline.shape, device="meta", train_size=size)
            check_metrics(config, parts.model)
        except ConfigError as error:
            return str(error)
        return None

    def outline(self, config: Mapping[str, Any]) -> data.Outline:
        """What the data of a configuration are like: found out once, since the files are read for it."""
        key = json.dumps(config["data"], sort_keys=True)
        if key not in self._outlines:
            with part(config, "data") as (loader, options):
                self._outlines[key] = data.check(loader, **options)
        return self._outlines[key]

    def preflight(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the initialized model does to signal and gradient: see fanin.preflight."""
        with initializer(config) as (function, _, _):
            if initializers.is_whole(function) and initializers.is_trained(function):
                return {"verdict": "unknown", "reason": "its initializer is trained on the data: measured in the run"}
        split = self._split(config)
        model = self._start(config, split)
        batch = split.train[: preflight.BATCH]
        return preflight.fly(model, split.images[batch], split.labels[batch])

    def _start(self, config: Mapping[str, Any], split: data.Split) -> nn.Module:
        """The model as a run's training will find it."""
        shape, device = split.images.shape[1:], split.images.device
        model = build_model(config, shape=shape, device=device, streams=streams_of(config))
        for _ in initialize(config, model, split):
            pass
        return model

    def seconds_of_pretraining(self, config: Mapping[str, Any]) -> float:
        """Of an initializer that trains, measured on a short version of it; 0 for the others."""
        short = rehearsal(config, self._split(config))
        if short is None:
            return 0.0
        brief, few, times = short
        began = time.perf_counter()
        self._start(brief, few)
        return (time.perf_counter() - began) * times

    def seconds_per_epoch(self, config: Mapping[str, Any], *, batches: int = 12) -> float:
        """Measured on a few batches, scaled to an epoch."""
        split = self._split(config)
        parts = build(config, shape=split.images.shape[1:], device=split.images.device, train_size=len(split.train))
        full = config["optimizer"]["batch"] == "full"
        size = len(split.train) if full else config["batch_size"] * batches
        few = data.Split(**{**vars(split), "train": split.train[:size]})
        progress = Progress()
        for _ in self._fit(config, parts, few, progress=progress, epochs=1):
            pass
        return progress.seconds * len(split.train) / len(few.train)

    def _train(self, payload: Mapping[str, Any], log: Spool, channel: Channel) -> dict[str, Any]:
        folder, config = Path(payload["folder"]), payload["spec"]["config"]
        split = self._split(config, dataset=payload.get("dataset"))
        parts = build(config, shape=split.images.shape[1:], device=split.images.device, train_size=len(split.train))
        tell = channel.ask if payload["judged"] else channel.send
        usage = Usage(split.images.device) if config["tracking"].get("system_metrics") == "epoch" else None
        reason, saved, last = None, time.monotonic(), None
        history = [record["metrics"] for record in spool.digest(spool.read(log.path)[0]).epochs]
        progress = resume(folder / "checkpoint.pt", parts)
        if progress is None:
            progress = Progress()
            if stopped := self._initialize(config, parts, split, progress=progress, log=log, channel=channel):
                return _end("KILLED", stopped, progress)
        for record in self._fit(config, parts, split, progress=progress, epochs=config["epochs"]):
            beside = {"histograms": record.histograms} if record.histograms else {}
            taken = usage.measure() if usage else {}
            new = log.append("epoch", epoch=record.epoch, metrics=record.metrics | taken, **beside)
            history[record.epoch :], last = [record.metrics], record
            watched = {key: record.metrics[key] for key in payload["watched"] if key in record.metrics}
            if verdict := tell("record", {"epoch": record.epoch, "metrics": watched, "new": new}):
                reason = f"pruned: {verdict}"
                break
            if progress.ended:
                continue  # that was the last one
            if found := fatal(history, config["study"]["prune_on"], batch_norm=has_batch_norm(parts.model)):
                reason = f"pruned: {found}"
                break
            stopped = channel.stopped
            if stopped or time.monotonic() - saved >= payload["checkpoint"]:
                log.sync()  # a checkpoint that is ahead of the records would leave a gap in them
                state = capture(parts.model, parts.optimizer, parts.schedule, progress)
                save(folder / "checkpoint.pt", state)
                saved = time.monotonic()
            if stopped:
                return _end("KILLED", stopped, progress)
        if reason is None and progress.ended != "epochs":
            reason = progress.ended
        classes = Classes(*class_counts(split, last.predicted)) if last else None
        findings = diagnose(history, classes=classes, batch_norm=has_batch_norm(parts.model))
        return self._conclude(config, parts, split, progress, folder=folder, reason=reason, findings=findings)

    def _initialize(
        self,
        config: Mapping[str, Any],
        parts: Parts,
        split: data.Split,
        *,
        progress: Progress,
        log: Spool,
        channel: Channel,
    ) -> str | None:
        """Call an initializer of whole models and record its curves. Its time counts as training. Says why the
        run should stop, if it should."""
        began, stopped = time.perf_counter(), None
        for number, step in enumerate(initialize(config, parts.model, split)):
            metrics = {f"pretrain/{name}": value for name, value in step.metrics.items()}
            log.append("pretrain", number=number, step=step.number, metrics=metrics)
            if stopped := channel.stopped:
                break
        progress.seconds = time.perf_counter() - began
        return stopped

    def _conclude(
        self,
        config: Mapping[str, Any],
        parts: Parts,
        split: data.Split,
        progress: Progress,
        *,
        folder: Path,
        reason: str | None,
        findings: Sequence[Finding],
    ) -> dict[str, Any]:
        """Save the weights, show the test set to them (once), draw the pictures."""
        artifacts = folder / "artifacts.partial"
        artifacts.mkdir(exist_ok=True)
        parts.model.load_state_dict(progress.weights(parts.model))
        save(artifacts / "last.pt", parts.model.state_dict())
        save(artifacts / "best.pt", progress.best_state or parts.model.state_dict())
        (artifacts / "config.yaml").write_text(
            yaml.dump(dict(config), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
        )
        (artifacts / "environment.json").write_text(json.dumps(self._environment, indent=1))
        if shapes := collect(spool.digest(spool.read(folder / "spool.jsonl")[0]).epochs):
            (artifacts / HISTOGRAMS).write_text(shapes)
        (artifacts / "diagnosis.json").write_text(as_json(findings))
        pruned = (reason or "").startswith("pruned")
        metrics = {}
        if not pruned:
            if config["test_weights"] == "best" and progress.best_state:
                parts.model.load_state_dict(progress.best_state)
            test = evaluate(parts.model, split.test_images, split.test_labels)
            metrics = {"test/loss": test.loss, "test/accuracy": test.accuracy}
            draw(test, split, artifacts)
        publish(artifacts, folder / "artifacts")
        end = _end("KILLED" if pruned else "FINISHED", reason, progress, metrics=metrics)
        return end | ({"tags": {"fanin.diagnosis": label(findings)}} if findings else {})

    def _fit(
        self, config: Mapping[str, Any], parts: Parts, split: data.Split, *, progress: Progress, epochs: int
    ) -> Any:
        if (mode := config["hardware"]["compile"]) != "none":
            parts.model.compile(mode=None if mode == "default" else mode)
        probe = split.val[: probe_size(len(split.images), level=config["stats"])]
        stats = (
            LayerStats(
                parts.model,
                images=split.images[probe],
                labels=split.labels[probe],
                level=config["stats"],
                initial=initial_weights(config, split) if progress.epoch >= 0 and config["stats"] == "full" else None,
            )
            if config["stats"] != "off"
            else None
        )
        return fit(
            parts.model,
            parts.optimizer,
            split,
            epochs=epochs,
            batch_size=config["batch_size"],
            batch=config["optimizer"]["batch"],
            streams=parts.streams,
            scheduler=parts.schedule,
            regularizer=parts.regularizer,
            stats=stats,
            precision=config["hardware"]["precision"],
            progress=progress,
        )

    def _split(self, config: Mapping[str, Any], *, dataset: data.Dataset | None = None) -> data.Split:
        """The run's data: `dataset`, if it was sent here, else read by the loader the configuration names."""
        device = resolve_device(config["hardware"]["device"])
        sizes = ("val", "n_train")
        key = json.dumps([{k: v for k, v in config["data"].items() if k not in sizes}, str(device)], sort_keys=True)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # free the old data before the new is loaded
            dataset = dataset or load_dataset(config)
            self._prepared = key, data.prepare(dataset, scale=config["data"]["scale"], device=device)
        options = config["data"]
        streams = streams_of(config)
        return data.split(self._prepared[1], val=options["val"], n_train=options["n_train"], streams=streams)


def probe_size(images: int, *, level: str) -> int:
    """Of a data set of so many `images` to train on and to validate with, however few a run takes of them: runs that
    are compared look at the same probe. 64 up to 4,096 images, 256 from 16,384 on, and under stats=full."""
    return PROBE_MOST if level == "full" else min(max(round(images * PROBE_SHARE), PROBE_LEAST), PROBE_MOST)


def save(path: Path, state: Any) -> None:
    """torch.save, then an atomic rename: a file that is there is whole."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def publish(draft: Path, folder: Path) -> None:
    """Give a finished folder its name, under which it is shipped; what a killed attempt left there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(draft, folder)


def resume(path: Path, parts: Parts) -> Progress | None:
    """Go on from the checkpoint at `path`; None if there is none."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return restore(state, parts.model, parts.optimizer, parts.schedule)


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())


def class_counts(split: data.Split, predicted: torch.Tensor) -> tuple[list[int], list[int]]:
    """Validation images of each class, and how many were taken for it; those taken for none are in no count."""
    counts = (torch.bincount(labels, minlength=split.classes) for labels in (split.labels[split.val], predicted))
    there, taken = (count.tolist() for count in counts)
    return there, taken[: split.classes]


def draw(test: Evaluation, split: data.Split, folder: Path) -> None:
    """A confusion matrix, and test images with their true and predicted labels."""
    truth, predicted = split.test_labels.cpu(), test.predicted.cpu()
    beyond = bool((predicted >= split.classes).any())  # of a model with more logits than classes: they share a column
    classes = split.classes + beyond
    matrix = pictures.confusion_matrix(truth, predicted.clamp(max=classes - 1), classes=classes)
    labels = np.arange(classes)
    head = ",".join(["true", *map(str, labels)])  # MLflow's table takes the first row for the names of columns
    rows = np.column_stack([labels, matrix])
    np.savetxt(folder / "confusion_matrix.csv", rows, fmt="%d", delimiter=",", header=head, comments="")
    samples = pictures.draw_samples(split.test_images.cpu(), truth, predicted, count=40)
    for name, picture in {"confusion_matrix.png": pictures.draw_confusion(matrix), "test_images.png": samples}.items():
        picture.save(folder / name, compress_level=1)  # a quarter larger, two thirds of the time


def _end(
    status: str, reason: str | None, progress: Progress, *, metrics: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What the spool's end record says."""
    return {
        "status": status,
        "reason": reason,
        "metrics": dict(metrics or {}),
        "step": max(progress.epoch, 0),
        "seconds": progress.seconds,
    }


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return (
        text
        if isinstance(error, ConfigError) or not isinstance(error, Exception)
        else f"{type(error).__name__}: {text}"
    )
