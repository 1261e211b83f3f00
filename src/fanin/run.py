"""One run: configuration in, recorded result out. The only place where objects are built from a configuration.

A configuration is a plain dictionary, resolved by the caller; `_target_` keys name the parts a user may swap (model,
initializer, optimizer, scheduler, data) by their import path. Below this file nobody sees a configuration.
"""

import json
import os
import pkgutil
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch._dynamo  # an optimizer's first step imports it: here, the fork server does so once for all workers
import yaml
from torch import nn

from fanin import data, initializers, models, optimizers, pictures, preflight, regularizers, schedulers, spool
from fanin.blame import blaming, describe
from fanin.checkpoint import Progress, capture, restore
from fanin.diagnose import Classes, Finding, as_json, diagnose, fatal, label
from fanin.errors import ConfigError, require, unknown
from fanin.evaluation import Evaluation, evaluate
from fanin.histograms import HISTOGRAMS, collect
from fanin.memory import keep_freed_memory
from fanin.provenance import versions
from fanin.randomness import Streams, check_seeds
from fanin.spool import Spool
from fanin.stats import BATCH_NORMS, FULL, LAYERS, LEVELS, STATISTICS, LayerStats
from fanin.train import batch_sizes, fit, numerics
from fanin.train import check as check_training
from fanin.usage import CHOICES, Usage

PROBE = 256  # held-out images the per-layer statistics look at
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")


class Channel(Protocol):
    """How a run talks to whoever started it: `ask` waits for a verdict on the record, `send` does not;
    `stopped` says why the run should end with this epoch, if it should."""

    @property
    def stopped(self) -> str | None: ...
    def send(self, kind: str, payload: Any) -> None: ...
    def ask(self, kind: str, payload: Any) -> Any: ...


@dataclass(frozen=True)
class Parts:
    """What a run trains, built from its configuration."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: schedulers.Schedule
    regularizer: regularizers.Regularizer
    streams: Streams


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
            if initializers.is_whole(function):
                return {"verdict": "unknown", "reason": "its initializer works on the data"}
        split = self._split(config)
        model = build_model(
            config, shape=split.images.shape[1:], device=split.images.device, streams=streams_of(config)
        )
        batch = split.train[: preflight.BATCH]
        return preflight.fly(model, split.images[batch], split.labels[batch])

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
        for number, step in enumerate(initialize(config, parts, split)):
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
        probe = split.val[:PROBE]
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


def load_dataset(config: Mapping[str, Any]) -> data.Dataset:
    with part(config, "data") as (loader, options):
        return data.load(loader, **options)


def build(config: Mapping[str, Any], *, shape: Any, device: torch.device | str, train_size: int) -> Parts:
    """Build everything a configuration names, on `device` ("meta" checks it without memory or time).

    Raises ConfigError for whatever does not fit together.
    """
    check_numbers(config)
    streams = streams_of(config)
    regularizer = regularizers.build(**config["regularization"])
    regularizers.check_images(regularizer, shape=shape)
    model = build_model(config, shape=shape, device=device, streams=streams)
    weight = None
    with initializer(config) as (function, options, _):
        if initializers.is_whole(function):
            facts = {"in_shape": tuple(shape), "scale": config["data"]["scale"], "count": train_size}
            initializers.check_whole(function, model, options=options, facts=facts)
        else:
            weight = initializers.bind(function, options)
    weight_decay = config["regularization"]["weight_decay"]
    with part(config, "optimizer") as (factory, options):
        optimizers.refuse_weight_decay(options)
        rates = initializers.learning_rates(weight, model, in_shape=tuple(shape), optimizer=factory)
        parameters = model.parameters()
        optimizer = optimizers.build(factory, parameters, weight_decay=weight_decay, rates=rates, **options)
    sizes = {"batch_size": config["batch_size"], "batch": config["optimizer"]["batch"]}
    check_training(
        model,
        epochs=config["epochs"],
        count=train_size,
        precision=config["hardware"]["precision"],
        device=str(resolve_device(config["hardware"]["device"])),
        **sizes,
    )
    steps = len(batch_sizes(train_size, **sizes))
    with part(config, "scheduler") as (factory, options):
        schedule = schedulers.build(factory, optimizer, epochs=config["epochs"], steps_per_epoch=steps, **options)
    return Parts(model, optimizer, schedule, regularizer, streams)


def streams_of(config: Mapping[str, Any]) -> Streams:
    seeds = config.get("seeds", {})  # runs recorded before there were any are loaded, too
    return Streams(config["seed"], config["replicate"], seeds)


def build_model(config: Mapping[str, Any], *, shape: Any, device: torch.device | str, streams: Streams) -> nn.Module:
    """The initialized model, drawn on the CPU and moved to `device`: every device starts from the same weights.

    Where the initializer is one of whole models, it has yet to be called: see `initialize`.
    """
    torch.manual_seed(streams.derive("init", "constructor"))  # a user's class may draw while it is built
    meta = str(device) == "meta"
    make = models.draft if meta else models.build
    with part(config, "model") as (factory, options):
        model = make(
            factory,
            in_shape=tuple(shape),
            classes=config["data"]["classes"],
            options=options,
            **regularizers.layers(**config["regularization"]),
        )
    with initializer(config) as (function, options, bias):
        if initializers.is_whole(function):
            initializers.check_bias(bias, filled=False)
            initializers.fill_biases(model, bias=bias, streams=streams)
        else:
            weight = initializers.bind(function, options)
            initializers.initialize(model, weight=weight, bias=bias, streams=streams, in_shape=tuple(shape))
    if not meta:
        model = model.to(device)
        models.seed_noise(model, streams)
    return model


def initialize(config: Mapping[str, Any], parts: Parts, split: data.Split) -> Iterator[initializers.Step]:
    """Call the initializer if it is one of whole models, on the run's device and training images; yields its
    steps."""
    with initializer(config) as (function, options, _):
        if initializers.is_whole(function):
            with numerics(config["hardware"]["precision"], split.images.device):
                yield from initializers.initialize_whole(
                    function,
                    parts.model,
                    options=options,
                    streams=parts.streams,
                    images=split.images,
                    labels=split.labels,
                    index=split.train,
                )
            models.seed_noise(parts.model, parts.streams)  # it may have drawn masks


@contextmanager
def initializer(config: Mapping[str, Any]) -> Iterator[tuple[Callable[..., Any], dict[str, Any], Any]]:
    """The configuration's initializer, its options and `bias`. Options that name a function are bound."""
    with part(config, "initializer") as (function, options):
        bias = options.pop("bias", None)
        for key, value in options.items():
            if isinstance(value, Mapping) and "_target_" in value:
                group = f"initializer.{key}"
                with part({group: value}, group) as (own, arguments):
                    options[key] = initializers.bind(own, arguments, group=group)
        yield function, options, bias


def check_numbers(config: Mapping[str, Any]) -> None:
    """The root keys' ranges; each group's own are checked where its objects are built."""
    for key in ("seeds", "stats", "test_weights", "tracking"):
        if key not in config:
            raise ConfigError(f"{key}: conf/config.yaml has no such key: it is of another version of fanin")
    for key, least in {"epochs": 0, "batch_size": 1, "seed": 0, "replicate": 0}.items():
        value = config[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(whole, key, f"must be a whole number >= {least}", value)
    check_seeds(config["seeds"])
    for key, options in {"stats": LEVELS, "test_weights": ("last", "best")}.items():
        if config[key] not in options:
            raise unknown(key, config[key], options)
    watched = config["tracking"].get("system_metrics", "none")  # a choice of one's own may leave it out
    if watched not in CHOICES:
        raise unknown("tracking.system_metrics", watched, CHOICES)
    hardware = config["hardware"]
    if hardware["compile"] not in COMPILE_MODES:
        raise unknown("hardware.compile", hardware["compile"], COMPILE_MODES)


def check_metrics(config: Mapping[str, Any], model: nn.Module) -> None:
    """A study may be judged by a statistic of a layer, `weight/layers.0/std`, if there is that one; a criterion by
    those that match a pattern."""
    judged = config["study"]["metric"]
    wanted = [("study.metric", metric) for metric in (judged if isinstance(judged, list) else [judged])]
    wanted += dict(config["study"]["criteria"]).items()
    layers = [path for path, module in model.named_modules() if isinstance(module, LAYERS)]
    for key, metric in wanted:
        kind = metric.partition("/")[0]
        if kind in STATISTICS:
            require(config["stats"] != "off", key, "is not measured with stats=off", metric)
            names = STATISTICS[kind] + (FULL.get(kind, ()) if config["stats"] == "full" else ())
            known = [f"{kind}/{layer}/{name}" for layer in layers for name in names]
            if not any(fnmatchcase(name, metric) for name in known):
                raise unknown(key, metric, known)


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; raises ConfigError for a device this machine has not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, available in there.items() if available))
    if name not in there:
        raise unknown("hardware.device", name, ["auto", *there])
    require(
        there[name],
        "hardware.device",
        f"this machine has no {name} that torch {torch.__version__} can use",
        name,
    )
    return torch.device(name)


@contextmanager
def part(config: Mapping[str, Any], group: str) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """The callable a group of the configuration names, and its arguments, to be called in the `with`: what a
    user's own then raises is a ConfigError."""
    options = dict(config[group])
    path = options.pop("_target_", None)
    require(isinstance(path, str), f"{group}._target_", "must name a callable", path)
    try:
        target = pkgutil.resolve_name(path)
    except Exception as error:  # importing runs a user's module, which may raise anything
        raise ConfigError(f"{group}._target_: cannot import {path!r}: {describe(error)}") from error
    require(callable(target), f"{group}._target_", "must name a callable", path)
    with blaming(group, target):
        yield target, options


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


def load_model(folder: Path, weights: str = "best") -> nn.Module:
    """The trained model of a run's artifacts folder (config.yaml, best.pt, last.pt), in eval mode, on the CPU."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    streams = streams_of(config)
    model = build_model(config, shape=config["data"]["shape"], device="cpu", streams=streams)
    model.load_state_dict(torch.load(folder / f"{weights}.pt", map_location="cpu", weights_only=True))
    return model.eval()


def initial_weights(config: Mapping[str, Any], split: data.Split) -> dict[str, torch.Tensor]:
    """Of a run that is gone on with, by the paths of its layers; none if its initializer would take training."""
    with initializer(config) as (function, _, _):
        if initializers.is_whole(function):
            return {}
    model = build_model(config, shape=split.images.shape[1:], device=split.images.device, streams=streams_of(config))
    return {path or "model": m.weight.detach() for path, m in model.named_modules() if isinstance(m, LAYERS)}


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
    pictures.draw_confusion(matrix).save(folder / "confusion_matrix.png")
    pictures.draw_samples(split.test_images.cpu(), truth, predicted, count=40).save(folder / "test_images.png")


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
