"""Learning-rate schedules: torch's schedulers, told how often they step and how long training lasts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from fanin import ranges
from fanin.errors import ConfigError, unknown
from fanin.ranges import number, whole

EVERY = ("step", "epoch", "val/loss")
DERIVED = ("total_steps", "T_max", "total_iters")
RANGES = {
    "step_size": whole(1),
    "gamma": number(above=0),
    "eta_min": number(least=0),
    "pct_start": number(above=0, below=1),
    "div_factor": number(above=0),
    "final_div_factor": number(above=0),
    "factor": number(above=0),
    "patience": whole(0),
}


@dataclass(frozen=True)
class Schedule:
    """A scheduler and when it advances: after each optimizer step, each epoch, or each epoch's val/loss."""

    scheduler: LRScheduler
    every: str

    def after_step(self) -> None:
        if self.every == "step":
            self.scheduler.step()

    def after_epoch(self, val_loss: float) -> None:
        if self.every == "epoch":
            self.scheduler.step()
        elif isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val_loss)


def build(
    factory: Callable[..., LRScheduler],
    optimizer: Optimizer,
    *,
    every: str,
    epochs: int,
    steps_per_epoch: int,
    **options: Any,
) -> Schedule:
    """Build `factory(optimizer, **options)`; its length (total_steps, T_max, ...) is derived.

    Raises ConfigError for an option the scheduler does not have or refuses.
    """
    if every not in EVERY:
        raise unknown("scheduler.every", every, EVERY)
    takes = list(inspect.signature(factory).parameters)[1:]
    for key in options:
        if key not in takes:
            raise unknown("scheduler", key, takes)
    ranges.check(options, RANGES, group="scheduler")
    if (every == "val/loss") != (factory is ReduceLROnPlateau):
        rule = "val/loss goes with ReduceLROnPlateau, and only with it"
        raise ConfigError(f"scheduler.every: {rule}, got {every!r}")
    length = max(1, epochs * (steps_per_epoch if every == "step" else 1))
    derived = {name: length for name in DERIVED if name in takes and name not in options}
    try:
        return Schedule(factory(optimizer, **derived, **options), every)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"scheduler: {factory.__name__} refuses its settings: {error}") from error


def onecycle(
    optimizer: Optimizer, *, total_steps: int, pct_start: float, div_factor: float, final_div_factor: float
) -> LRScheduler:
    """Up to the optimizer's lr and down again (Smith & Topin 2018), momentum, if any, the other way."""
    momentum = optimizer.defaults.get("momentum", 0) > 0 or "betas" in optimizer.defaults
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=float(pct_start),
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=momentum,
    )
