"""A network and images small enough to follow every number of by hand."""

import torch
from draws import generator

from fanin.models import Mlp
from fanin.models.noise import seed_noise
from fanin.randomness import Streams

IMAGES = torch.randn(64, 1, 5, 4, generator=generator(1))
LABELS = torch.randint(3, (64,), generator=generator(2))


def make_mlp(activation: str = "relu", *, widths: tuple[int, ...] = (12, 7), norm: str = "none") -> Mlp:
    torch.manual_seed(0)
    options = {"activation": activation, "norm": norm, "norm_noise": 1.0, "dropout": 0.5}
    model = Mlp(in_shape=(1, 5, 4), classes=3, widths=widths, **options)
    seed_noise(model, Streams(seed=0, replicate=0))
    return model
