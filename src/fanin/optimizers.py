"""Optimizers: any class of torch.optim's interface, built with checked settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fanin import ranges
from fanin.errors import ConfigError, require, unknown
from fanin.ranges import number, sequence, whole
from fanin.regularizers import DECAY, weights

BATCHES = ("mini", "full")
RANGES = {
    "lr": number(above=0),
    "momentum": number(least=0, below=1),
    "dampening": number(least=0, below=1),
    "betas": sequence(2, number(least=0, below=1)),
    "eps": number(above=0),
    "rho": number(least=0, below=1),
    "alpha": number(least=0, below=1),
    "lambd": number(least=0),
    "t0": number(least=0),
    "etas": sequence(2, number(above=0)),
    "step_sizes": sequence(2, number(above=0)),
    "max_iter": whole(1),
    "history_size": whole(1),
}
# Who cannot shrink the weights beside its step.
UNDECAYED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "lbfgs takes every change of the weights for its own step, and learns the curvature from it",
    torch.optim.Rprop: "rprop's steps do not grow with lr, which a decoupled decay is measured in",
}


def build(
    factory: Callable[..., Optimizer],
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    batch: str,
    rates: Mapping[nn.Parameter, float] | None = None,
    **options: Any,
) -> Optimizer:
    """Build `factory(parameters, lr=lr, **options)`.

    `batch`: what one step sees, a mini-batch or the full training set. `weight_decay` is decoupled whatever the
    optimizer would make of it: its groups say how much each decays (weights of two or more dimensions only), and
    `regularizers.decay` does it. `rates` multiply lr for the parameters that they name. Fused kernels are taken
    where torch has them for the device.

    Raises ConfigError for a setting that is out of range or that the optimizer does not have.
    """
    check(factory, lr=lr, weight_decay=weight_decay, batch=batch, options=options)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    takes = _settings(factory)
    trained: list[Any] = [parameter for parameter in parameters if parameter.requires_grad]
    if "weight_decay" in takes:
        settings["weight_decay"] = 0.0
    if weight_decay or rates:
        trained = _groups(trained, lr=lr, weight_decay=weight_decay, rates=rates or {})
    try:
        return _construct(factory, trained, lr=lr, fused="fused" in takes, settings=settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer: {factory.__name__} refuses its settings: {error}") from error


def refuse_weight_decay(options: Iterable[str]) -> None:
    """Raise a ConfigError if a config sets an optimizer's own decay, which means another thing in each."""
    if "weight_decay" in options:
        rule = "is set for every optimizer by regularization.weight_decay, decoupled, or regularization.l2, coupled"
        raise ConfigError(f"optimizer.weight_decay: {rule}")


def check(
    factory: Callable[..., Optimizer], *, lr: float, weight_decay: float, batch: str, options: dict[str, Any]
) -> None:
    """Raise a ConfigError for what can be told from the settings alone."""
    ranges.check({"lr": lr, **options}, RANGES, group="optimizer")
    if batch not in BATCHES:
        raise unknown("optimizer.batch", batch, BATCHES)
    if _is(factory, torch.optim.SparseAdam):
        reason = "it only updates sparse gradients, which none of these models' layers produce; take adam"
        raise ConfigError(f"optimizer: sparse_adam cannot train here: {reason}")
    if _is(factory, torch.optim.Rprop):
        rule = "rprop compares the signs of successive gradients, so it needs the full batch: set it to full"
        require(batch == "full", "optimizer.batch", rule, batch)
    takes = _settings(factory)
    for kind, reason in UNDECAYED.items():
        rule = f"must be 0, for {reason}; regularization=l2 puts the decay into the gradient"
        require(not (weight_decay and _is(factory, kind)), "regularization.weight_decay", rule, weight_decay)
    for key in options:
        if key not in takes and "options" not in takes:
            raise unknown("optimizer", key, takes)
    if _is(factory, torch.optim.LBFGS):
        searches, search = (None, "strong_wolfe"), options.get("line_search_fn")
        require(search in searches, "optimizer.line_search_fn", "must be null or strong_wolfe", search)


def _settings(factory: Callable[..., Optimizer]) -> set[str]:
    """The names `factory` takes besides the parameters; with "options" among them it takes any."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    return {"options" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def _is(factory: Callable[..., Optimizer], kind: type[Optimizer]) -> bool:
    return isinstance(factory, type) and issubclass(factory, kind)


def _groups(
    trained: list[nn.Parameter], *, lr: float, weight_decay: float, rates: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """One group for each learning rate and decay. Whatever its rate, a weight shrinks by lr * weight_decay a step.

    Those that learn with lr itself come first: the first group's is the one that is recorded.
    """
    decayed = {id(parameter) for parameter in weights(trained)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in trained:
        groups.setdefault((rates.get(parameter, 1.0), id(parameter) in decayed), []).append(parameter)
    return [
        {"params": groups[rate, decays], "lr": lr * rate, DECAY: weight_decay / rate if decays else 0.0}
        for rate, decays in sorted(groups, key=lambda key: (key[0] != 1.0, not key[1]))
    ]


def _construct(
    factory: Callable[..., Optimizer], trained: list[Any], *, lr: float, fused: bool, settings: dict[str, Any]
) -> Optimizer:
    if fused and "fused" not in settings:
        try:
            return factory(trained, lr=lr, fused=True, **settings)
        except RuntimeError:  # how torch says that this device has no fused kernel
            pass
    return factory(trained, lr=lr, **settings)
