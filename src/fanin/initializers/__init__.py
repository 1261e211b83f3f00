"""Initializers: functions of one tensor (closed_form, scaled, structured), put to work on a model (layers), and
functions of a whole model and of data (whole).

Yours needs no registration: a function `f(weight, *, generator, ...)` that fills `weight` in place, and a
file in conf/initializer/ with `_target_: your.module.f`, its options and a `bias`. It is given what it names:

- `generator`: the random stream of this weight;
- `layer`: which Layer of the model it is (the first, the last, after how much dropout);
- `bias`: the layer's bias, or None, to be filled in place, too; the file then says nothing of a `bias`.

Or a function `f(model, *, ...)`, as in `whole`, which may see data. An option that is itself a mapping with a
`_target_` is a function of one tensor, bound to the options beside it.

A class whose instances are called like `f(weight, ...)` may, by a method `learning_rates`, also set each parameter's
own rate, as mup does.
"""

from fanin.initializers.belief_network import dbn
from fanin.initializers.closed_form import constant, normal, ones, trunc_normal, uniform, zeros
from fanin.initializers.layers import bind, check_bias, fill_biases, fill_weights, initialize, learning_rates
from fanin.initializers.learned import gradinit, metainit
from fanin.initializers.mup import Mup
from fanin.initializers.residual import fixup, rezero, skipinit
from fanin.initializers.roles import Layer
from fanin.initializers.scaled import (
    edge_of_chaos,
    he_dropout,
    he_normal,
    he_uniform,
    kumar_sigmoid,
    lecun_normal,
    lecun_uniform,
    torch_default,
    xavier_normal,
    xavier_uniform,
)
from fanin.initializers.structured import (
    delta_orthogonal,
    identity,
    orthogonal,
    partial_identity,
    sparse,
    zero_hadamard,
    zero_last,
)
from fanin.initializers.unit_variance import lsuv
from fanin.initializers.whole import (
    Rehearsal,
    Step,
    check_whole,
    checked_by,
    initialize_whole,
    is_trained,
    is_whole,
    rehearsal,
)

__all__ = [
    "Layer",
    "Mup",
    "Rehearsal",
    "Step",
    "bind",
    "check_bias",
    "check_whole",
    "checked_by",
    "constant",
    "dbn",
    "delta_orthogonal",
    "edge_of_chaos",
    "fill_biases",
    "fill_weights",
    "fixup",
    "gradinit",
    "he_dropout",
    "he_normal",
    "he_uniform",
    "identity",
    "initialize",
    "initialize_whole",
    "is_trained",
    "is_whole",
    "kumar_sigmoid",
    "learning_rates",
    "lecun_normal",
    "lecun_uniform",
    "lsuv",
    "metainit",
    "normal",
    "ones",
    "orthogonal",
    "partial_identity",
    "rehearsal",
    "rezero",
    "skipinit",
    "sparse",
    "torch_default",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zero_hadamard",
    "zero_last",
    "zeros",
]
