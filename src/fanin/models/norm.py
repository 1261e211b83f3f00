"""Normalisation layers by name: none, batch, noisy_batch, layer or group."""

import torch
from torch import Tensor, nn

from fanin.errors import require, unknown
from fanin.models.noise import Noise
from fanin.ranges import is_whole

NORMS = ("none", "batch", "noisy_batch", "layer", "group")


def check_norm(name: str) -> None:
    if name not in NORMS:
        raise unknown("regularization.norm", name, NORMS)


def centres_each_unit(name: str) -> bool:
    """Whether the norm subtracts each unit's own mean, and so whatever bias was added before it."""
    return name in ("batch", "noisy_batch")


def norm_1d(name: str, features: int, *, groups: int = 1, noise: float = 0.0) -> nn.Module:
    """For activations of shape (N, features)."""
    check_norm(name)
    if name == "batch":
        return nn.BatchNorm1d(features)
    if name == "noisy_batch":
        return NoisyBatchNorm1d(features, noise=noise)
    if name == "group":
        return group_norm(features, groups=groups)
    return nn.LayerNorm(features) if name == "layer" else nn.Identity()


def norm_2d(name: str, channels: int, *, groups: int = 1, noise: float = 0.0) -> nn.Module:
    """For activations of shape (N, C, H, W). Layer norm averages over C, H and W, and scales by channel."""
    check_norm(name)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "noisy_batch":
        return NoisyBatchNorm2d(channels, noise=noise)
    if name == "group":
        return group_norm(channels, groups=groups)
    return nn.GroupNorm(1, channels) if name == "layer" else nn.Identity()


def group_norm(features: int, *, groups: int) -> nn.Module:
    """Normalises each image within each of `groups` groups of neighbouring units (Wu & He 2018)."""
    fits = is_whole(groups, least=1) and features % groups == 0
    rule = f"must divide the {features} units of every layer that is normalised"
    require(fits, "regularization.groups", rule, groups)
    return nn.GroupNorm(groups, features)


class NoisyBatchNorm(Noise):
    """Batch norm, then `disturb` of strength `noise` while training; torch's batch norm follows it among the bases."""

    purpose = "norm_noise"

    def __init__(self, features: int, *, noise: float):
        super().__init__(features)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        normalised = super().forward(x)
        return disturb(normalised, strength=self.noise, generator=self.generator) if self.training else normalised


class NoisyBatchNorm1d(NoisyBatchNorm, nn.BatchNorm1d):
    """For activations of shape (N, features)."""


class NoisyBatchNorm2d(NoisyBatchNorm, nn.BatchNorm2d):
    """For activations of shape (N, C, H, W)."""


def disturb(x: Tensor, *, strength: float, generator: torch.Generator | None) -> Tensor:
    """Give each unit a distribution of its own, another one at every step: covariate shift that batch norm cannot undo.

    Santurkar et al. 2018, algorithm 1 with their constants: unit j of x (N, units, ...) draws mu_j ~ U(-.5, .5) and
    sigma_j ~ U(1, 1.25); each of its activations becomes s x + m with s ~ N(sigma_j, .1^2), m ~ U(mu_j -+ .1).
    `strength` multiplies all of this noise; 0 leaves x as it is.
    """
    units = [2, 1, x.shape[1], *[1] * (x.dim() - 2)]
    mean, spread = torch.rand(units, generator=generator, device=x.device)
    jitter = torch.rand(x.shape, generator=generator, device=x.device)
    scale = torch.randn(x.shape, generator=generator, device=x.device)
    shift = (mean - 0.5) + 0.2 * (jitter - 0.5)
    factor = 0.25 * spread + 0.1 * scale
    return x + (strength * (factor * x + shift)).to(x.dtype)
