"""Initializers: functions of one tensor (closed_form), and what puts them to work on a model (layers).

Yours needs no registration: a function `f(weight, *, generator, ...)` that fills `weight` in place, and a
file in conf/initializer/ with `_target_: your.module.f`, its options and a `bias`.
"""

from fanin.initializers.closed_form import (
    constant,
    he_normal,
    he_uniform,
    lecun_normal,
    normal,
    ones,
    orthogonal,
    torch_default,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from fanin.initializers.layers import bind, initialize

__all__ = [
    "bind",
    "constant",
    "he_normal",
    "he_uniform",
    "initialize",
    "lecun_normal",
    "normal",
    "ones",
    "orthogonal",
    "torch_default",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
