"""Initializers: functions of one tensor (closed_form, scaled, structured), put to work on a model (layers).

Yours needs no registration: a function `f(weight, *, generator, ...)` that fills `weight` in place, and a
file in conf/initializer/ with `_target_: your.module.f`, its options and a `bias`. It is given what it names:

- `generator`: the random stream of this weight;
- `layer`: which Layer of the model it is (the first, the last, after how much dropout);
- `bias`: the layer's bias, or None, to be filled in place, too; the file then says nothing of a `bias`.
"""

from fanin.initializers.closed_form import constant, normal, ones, uniform, zeros
from fanin.initializers.layers import bind, initialize
from fanin.initializers.roles import Layer
from fanin.initializers.scaled import (
    he_normal,
    he_uniform,
    lecun_normal,
    torch_default,
    xavier_normal,
    xavier_uniform,
)
from fanin.initializers.structured import orthogonal

__all__ = [
    "Layer",
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
