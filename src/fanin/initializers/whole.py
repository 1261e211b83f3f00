"""Initializers of a whole model: those that must see more than one layer's weight, or data.

An initializer whose first parameter is called `model` is one:

    def f(model, *, streams, images, ...): ...

It changes the parameters in place. When it is called the model lies on the run's device, its norms are the
identity, its biases are what the configuration says and its weights what the constructor left. It is given,
if its signature names them, besides its own options:

| name | what |
| --- | --- |
| images, labels | the run's own training images (N, C, H, W) and labels (N,); never validation or test |
| in_shape | the shape of an image, (C, H, W) |
| streams | the run's random streams: ask for streams.generator("init", <a name>) |
| generator | or one such generator, on the CPU |

A generator function yields a `Step` now and then: each becomes a point of the curves `pretrain/<name>`, and a
run can be stopped there. It is taken for one that trains, and so no pre-flight calls it.

An attribute `f.check(model, ...)` is called before any run, for a model without numbers (on the meta device),
and raises a ConfigError for one that `f` cannot serve; it may ask by name for any option of `f`, for `in_shape`
(C, H, W), for `scale`, that of the pixels (`data.scale`), and for `count`, the number of training images.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import isgenerator, isgeneratorfunction, signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fanin.randomness import Streams
from fanin.ranges import Range
from fanin.ranges import check as check_ranges
from fanin.signatures import accepts, asked, check_options

SUPPLIED = ("model", "streams", "generator", "images", "labels", "in_shape")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Step:
    """Where an initializer stands: `number` counts its own epochs or steps, `metrics` are what it measured."""

    number: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Rehearsal:
    """A short version of an initializer that trains: with these `options`, on so many `images`, it takes the
    `times`-th part of the time."""

    options: Mapping[str, Any]
    images: int
    times: float


def is_whole(function: Callable[..., Any]) -> bool:
    """Whether `function` initializes a whole model, not one weight after the other."""
    return next(iter(signature(function).parameters), None) == "model"


def is_trained(function: Callable[..., Any]) -> bool:
    """Whether `function` takes a training of its own, and so seconds or minutes: it yields its steps."""
    return isgeneratorfunction(function)


def checked_by(
    check: Callable[..., None],
    *,
    ranges: Mapping[str, Range] | None = None,
    brief: Callable[..., Rehearsal] | None = None,
) -> Callable[[F], F]:
    """Decorates a whole-model initializer: before any run, its options must lie in their `ranges`, and `check`
    says what it cannot serve; `brief`, asked with the options it names and the `count` of training images, how
    to find out in a moment how long it will take."""

    def decorate(function: F) -> F:
        function.check = check  # type: ignore[attr-defined]
        function.ranges = ranges or {}  # type: ignore[attr-defined]
        function.brief = brief  # type: ignore[attr-defined]
        return function

    return decorate


def rehearsal(function: Callable[..., Any], options: Mapping[str, Any], *, count: int) -> Rehearsal | None:
    """None for a function that does not say how it is made short."""
    brief = getattr(function, "brief", None)
    return brief(**asked(brief, **dict(options), count=count)) if brief else None


def check_whole(
    function: Callable[..., Any],
    model: nn.Module,
    *,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Refuse options that `function` does not have or lacks, and whatever its own check refuses: it may name any
    option, and any of the `facts` in_shape, scale and count.

    Raises ConfigError. Works on models of the meta device.
    """
    check_options(function, options, group="initializer", supplied=SUPPLIED, offered=SUPPLIED)
    check_ranges(options, getattr(function, "ranges", {}), group="initializer")
    if check := getattr(function, "check", None):
        defaults = {name: p.default for name, p in signature(function).parameters.items() if name not in SUPPLIED}
        check(model, **asked(check, **defaults | dict(facts) | dict(options)))


def initialize_whole(
    function: Callable[..., Any],
    model: nn.Module,
    *,
    options: Mapping[str, Any],
    streams: Streams,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
) -> Iterator[Step]:
    """Initialize `model` by `function`, on the images and labels at `index`; yields what it yields.

    Afterwards modes and running averages are as before, and no gradient is left. What draws from torch's
    global stream starts at a place of its own.
    """
    given: dict[str, Any] = dict(options)
    for name, values in {"images": images, "labels": labels}.items():
        if accepts(function, name):
            given[name] = values.index_select(0, index)
    given["streams"], given["generator"] = streams, streams.generator("init", "whole model")
    given["in_shape"] = tuple(images.shape[1:])
    modes = [(module, module.training) for module in model.modules()]
    torch.manual_seed(streams.derive("init", "whole model"))
    steps = function(model, **asked(function, **given))
    if isgenerator(steps):
        yield from steps
    for module, training in modes:
        module.training = training
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.reset_running_stats()
    for parameter in model.parameters():
        parameter.grad = None
