"""From a configuration to objects. The only place where they are built from one.

A configuration is a plain dictionary, resolved by the caller; `_target_` keys name the parts a user may swap (model,
initializer, optimizer, scheduler, data) by their import path. Below this file nobody sees a configuration.
"""

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fanin import data, initializers, models, optimizers, regularizers, schedulers
from fanin.blame import blaming, describe, meant
from fanin.errors import ConfigError, require, unknown
from fanin.order import batch_sizes
from fanin.precision import numerics
from fanin.randomness import Streams, check_seeds
from fanin.stats import FULL, LAYERS, LEVELS, STATISTICS
from fanin.train import check as check_training
from fanin.usage import CHOICES

COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Parts:
    """What a run trains, built from its configuration."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: schedulers.Schedule
    regularizer: regularizers.Regularizer
    streams: Streams


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


def initialize(config: Mapping[str, Any], model: nn.Module, split: data.Split) -> Iterator[initializers.Step]:
    """Call the initializer if it is one of whole models, on the run's device and training images; yields its
    steps."""
    streams = streams_of(config)
    with initializer(config) as (function, options, _):
        if initializers.is_whole(function):
            with numerics(config["hardware"]["precision"], split.images.device):
                yield from initializers.initialize_whole(
                    function,
                    model,
                    options=options,
                    streams=streams,
                    images=split.images,
                    labels=split.labels,
                    index=split.train,
                )
            models.seed_noise(model, streams)  # it may have drawn masks


def rehearsal(config: Mapping[str, Any], split: data.Split) -> tuple[dict[str, Any], data.Split, float] | None:
    """A configuration and data by which an initializer that trains takes a moment, and how many times that long it
    takes as it is; None for the others, and for one that does not say how it is made short."""
    with initializer(config) as (function, options, _):
        if not (initializers.is_whole(function) and initializers.is_trained(function)):
            return None
        short = initializers.rehearsal(function, options, count=len(split.train))
    if short is None:
        return None
    few = replace(split, train=split.train[: short.images])
    return {**config, "initializer": {**config["initializer"], **short.options}}, few, short.times


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
        raise ConfigError(f"{group}._target_: cannot import {path!r}: {describe(error)}{meant(error)}") from error
    require(callable(target), f"{group}._target_", "must name a callable", path)
    with blaming(group, target):
        yield target, options


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
