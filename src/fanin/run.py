"""One run: configuration in, recorded result out."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer's first step imports it: here, the fork server does so once for all workers
from torch import nn

from fanin import data, initializers, preflight
from fanin.blame import describe
from fanin.build import (
    build,
    build_model,
    check_metrics,
    initialize,
    initializer,
    load_dataset,
    part,
    rehearsal,
    resolve_device,
    streams_of,
)
from fanin.checkpoint import Progress
from fanin.errors import ConfigError
from fanin.memory import keep_freed_memory
from fanin.provenance import versions
from fanin.spool import Spool
from fanin.training import Channel, Training, epochs_of


class Trainer:
    """A worker's handler: checks configurations, trains runs, and keeps prepared data from one to the next."""

    training = Training  # or one that also measures itself

    def __init__(self, *, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._environment = versions() | {"threads": str(threads)}
        self._prepared: tuple[str, data.Prepared] | None = None
        self._outlines: dict[str, data.Outline] = {}

    def __call__(self, kind: str, payload: Any, channel: Channel) -> Any:
        if kind == "check":
            for config in payload:  # one by one, so that whoever waits knows which one a worker died of
                channel.send("record", self.complaint(config))
            return None
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
                training = self._training(payload, log, channel)
                how = {key: payload[key] for key in ("judged", "watched", "checkpoint")}
                end = training.run(**how)
            except BaseException as error:  # recorded, then raised on: an interruption is not an Exception
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                seconds = time.monotonic() - began
                log.append("end", status=status, reason=_reason(error), metrics={}, step=0, seconds=seconds)
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
        for _ in epochs_of(config, parts, few, progress=progress, epochs=1):
            pass
        return progress.seconds * len(split.train) / len(few.train)

    def _training(self, payload: Mapping[str, Any], log: Spool, channel: Channel) -> Training:
        config = payload["spec"]["config"]
        split = self._split(config, dataset=payload.get("dataset"))
        parts = build(config, shape=split.images.shape[1:], device=split.images.device, train_size=len(split.train))
        return self.training(config, parts, split, Path(payload["folder"]), log, channel, self._environment)

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


def _reason(error: BaseException) -> str:
    if isinstance(error, Exception) and not isinstance(error, ConfigError):
        return describe(error)
    return str(error) or type(error).__name__  # says by itself what it is
