"""Between a point of the space (override key -> text) and Optuna's parameters (axis name -> value).

Names become categories; ranges and intervals become numbers, so that a search sees their order.
"""

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fanin.sweep.space import Axis, Space


def distribution(axis: Axis) -> BaseDistribution:
    """The axis as Optuna knows it."""
    if axis.low is None or axis.high is None:
        return CategoricalDistribution(axis.values)
    if axis.kind == "int" or (axis.kind == "range" and all(v.lstrip("-").isdigit() for v in axis.values)):
        return IntDistribution(int(axis.low), int(axis.high), step=int(axis.step or 1), log=axis.log)
    return FloatDistribution(axis.low, axis.high, step=axis.step, log=axis.log)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    return {axis.name: distribution(axis) for axis in space.axes}


def suggest(trial: optuna.Trial, space: Space) -> None:
    """Have the sampler decide every axis that exists, those that others depend on first."""
    point: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for axis in space.axes:
            if axis.exists(point):
                point |= axis.assign(_text(axis, _suggest(trial, axis)))


def values_of(params: Mapping[str, Any], space: Space) -> dict[str, str]:
    """Override key -> text. Parameters that are no axis (any more) are left out."""
    point: dict[str, str] = {}
    for axis in space.axes:
        if axis.name in params:
            point |= axis.assign(_text(axis, params[axis.name]))
    return point


def params_of(point: Mapping[str, str], space: Space) -> dict[str, Any]:
    """Axis name -> parameter, for the axes that `point` has a valid value of."""
    params: dict[str, Any] = {}
    known: dict[str, str] = {}
    for axis in space.axes:
        value = axis.locate(point)
        if value is not None and axis.exists(known):
            params[axis.name] = _param(axis, value)
            known |= axis.assign(value)
    return params


def pick(space: Space, draw: random.Random) -> dict[str, Any]:
    """The parameters of a point drawn at random."""
    params: dict[str, Any] = {}
    point: dict[str, str] = {}
    for axis in space.axes:
        if axis.exists(point):
            text = draw.choice(axis.values) if axis.values else _between(axis, draw)
            params[axis.name] = _param(axis, text)
            point |= axis.assign(text)
    return params


def every(space: Space) -> Iterator[dict[str, Any]]:
    """The parameters of every point of a space that has finitely many."""
    return _every(space.axes, {}, {})


def _every(axes: Sequence[Axis], point: dict[str, str], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not axes:
        yield params
        return
    axis, *rest = axes
    if not axis.exists(point):
        yield from _every(rest, point, params)
        return
    for text in axis.values or map(str, range(int(axis.low or 0), int(axis.high or 0) + 1)):
        yield from _every(rest, {**point, **axis.assign(text)}, {**params, axis.name: _param(axis, text)})


def _suggest(trial: optuna.Trial, axis: Axis) -> Any:
    kind = distribution(axis)
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(axis.name, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(axis.name, kind.low, kind.high, step=kind.step, log=kind.log)
    assert isinstance(kind, FloatDistribution)
    return trial.suggest_float(axis.name, kind.low, kind.high, step=kind.step, log=kind.log)


def _text(axis: Axis, param: Any) -> str:
    if axis.kind == "range":  # the axis's own spelling: what a grid would say
        return min(axis.values, key=lambda text: abs(float(text) - float(param)))
    return repr(float(param)) if axis.kind == "interval" else str(param)


def _param(axis: Axis, text: str) -> Any:
    kind = distribution(axis)
    if isinstance(kind, CategoricalDistribution):
        return text
    return int(float(text)) if isinstance(kind, IntDistribution) else float(text)


def _between(axis: Axis, draw: random.Random) -> str:
    assert axis.low is not None and axis.high is not None
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    number = draw.uniform(low, high)
    number = min(max(math.exp(number) if axis.log else number, axis.low), axis.high)
    return str(round(number)) if axis.kind == "int" else repr(number)
