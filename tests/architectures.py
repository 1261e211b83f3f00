"""Models of conf/model, with some options changed, and images for them."""

from pkgutil import resolve_name

import torch
from conftest import ROOT
from draws import generator
from initialized import options_of
from torch import Tensor, nn

from fanin import models
from fanin.randomness import Streams

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
STREAMS = Streams(seed=0, replicate=0)
MNIST = (1, 28, 28)
LAYERS = ("groups", "norm_noise", "stochastic_depth")  # what regularization asks a model for, besides norm and dropout


def build(choice: str, *, shape=MNIST, classes=10, norm="none", dropout=0.0, **changes) -> nn.Module:
    """The model of conf/model/<choice>.yaml with some options changed."""
    layers = {name: changes.pop(name) for name in LAYERS if name in changes}
    options = options_of("model", choice) | changes
    factory = resolve_name(options.pop("_target_"))
    settings = dict(in_shape=shape, classes=classes, norm=norm, dropout=dropout, **layers)
    return models.build(factory, options=options, **settings)


def build_own(factory, *, norm="none", dropout=0.0, make=models.build, **options) -> nn.Module:
    return make(factory, in_shape=MNIST, classes=10, norm=norm, dropout=dropout, options=options)


def mlp(widths, **changes) -> models.Mlp:
    """For MNIST, of ReLU units, without norm and dropout, where `changes` do not say otherwise."""
    options = dict(in_shape=MNIST, classes=10, activation="relu", norm="none", dropout=0.0)
    return models.Mlp(widths=widths, **options | changes)


def images(count: int = 8, shape=MNIST) -> Tensor:
    return torch.rand(count, *shape, generator=generator())
