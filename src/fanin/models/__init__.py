"""Architectures, one a file, and `build`, which makes any of them, or a user's own, to fit the data.

Yours needs no registration: a class, or a function that returns a module, and a file in conf/model/ with
`_target_: your.module.Name` and its options. It is given those of `in_shape`, `classes`, `norm` (with `groups` and
`norm_noise`), `dropout` and `stochastic_depth` that its signature names, and must map images (N, C, H, W) to logits
(N, classes), with no activation on them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fanin.errors import ConfigError, require
from fanin.models.cnn import Cnn
from fanin.models.dropout import check_probability
from fanin.models.miswired import MlpMiswired
from fanin.models.mlp import Mlp
from fanin.models.noise import load_noise_state, noise_state, seed_noise
from fanin.models.norm import check_norm
from fanin.models.rescnn import ResCnn
from fanin.models.resmlp import ResMlp
from fanin.models.softmax import Softmax
from fanin.models.zoo import torchvision_classifier
from fanin.signatures import accepts, check_options, label

__all__ = [
    "Cnn",
    "Mlp",
    "MlpMiswired",
    "ResCnn",
    "ResMlp",
    "Softmax",
    "build",
    "draft",
    "load_noise_state",
    "noise_state",
    "seed_noise",
    "torchvision_classifier",
]

OTHERS = {"stochastic_depth": "a residual model: resmlp, rescnn"}  # who has a place for it


def build(
    factory: Callable[..., nn.Module],
    *,
    in_shape: tuple[int, int, int],
    classes: int,
    norm: str,
    dropout: float,
    options: Mapping[str, Any],
    groups: int = 1,
    norm_noise: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Build the model that `factory` and its `options` describe, for images of `in_shape` (C, H, W).

    `norm`, `dropout` and the last three are what config group `regularization` asks for. An architecture's own,
    such as the `norm: batch` of cnn_small, is among the options and holds where regularization asks for none.

    Raises ConfigError if the options are not those of the factory, if it has no place for the norm, dropout or
    stochastic depth asked for, and if the model does not map such images to logits.
    """
    check_norm(norm)
    check_probability("dropout", dropout)
    check_probability("stochastic_depth", stochastic_depth)
    # What the default model leaves unset is nothing to a class of one's own, and Hydra cannot delete a null.
    options = {name: value for name, value in options.items() if value is not None or accepts(factory, name)}
    data = {"in_shape": tuple(in_shape), "classes": classes}
    arguments = {name: value for name, value in data.items() if accepts(factory, name)}
    arguments |= options
    asked = {
        "norm": (norm, "none"),
        "groups": (groups, 1),
        "norm_noise": (norm_noise, 0.0),
        "dropout": (dropout, 0.0),
        "stochastic_depth": (stochastic_depth, 0.0),
    }
    for name, (value, neutral) in asked.items():
        if accepts(factory, name):
            arguments[name] = options.get(name, neutral) if value == neutral else value
        elif value != neutral:
            raise ConfigError(
                f"regularization.{name}: {label(factory)} has no place for {name} {value!r}: it takes no "
                f"argument `{name}`; set regularization.{name}={neutral} or take {OTHERS.get(name, 'another model')}"
            )
    check_options(factory, options, group="model", supplied=arguments, offered=[*data, *asked])
    model = factory(**arguments)
    check_fit(model, in_shape=in_shape, classes=classes)
    return model


def draft(factory: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """`build` without memory or arithmetic, on the meta device: for checking a plan of many models.

    A model that fails there, as it needs real numbers, is built for real; torch's global stream is put back.
    """
    try:
        with torch.device("meta"):
            return build(factory, **arguments)
    except (ConfigError, RuntimeError) as error:
        if isinstance(error, ConfigError) and error.__cause__ is None:
            raise  # not torch, we refused it
    with torch.random.fork_rng(devices=[]):
        return build(factory, **arguments)


@torch.no_grad()
def check_fit(model: nn.Module, *, in_shape: tuple[int, int, int], classes: int) -> None:
    """Pass two black images through the model; its state stays. Raises ConfigError if no logits come out.

    One for each class, that is, unless the model says by an attribute `outputs` that it has more.
    """
    kind = type(model).__name__
    require(isinstance(model, nn.Module), "model._target_", "must make a torch.nn.Module", kind)
    parameter = next(model.parameters(), torch.empty(0))
    images = torch.zeros(2, *in_shape, device=parameter.device)
    shape = "x".join(str(size) for size in in_shape)
    was_training = model.training
    # For real, training mode would move the averages of batch norm; on the meta device there are none.
    model.train(parameter.is_meta)
    try:
        logits = model(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model: does not fit the data: on images of {shape} torch says: {error}") from error
    finally:
        model.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"model: must return one tensor of logits, got {type(logits).__name__}")
    found, expected = tuple(logits.shape), (2, getattr(model, "outputs", classes))
    rule = f"does not fit the data: two images of {shape} must give logits of shape {expected}"
    require(found == expected, "model", rule, found)
