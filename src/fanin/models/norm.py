"""Normalisation layers by name: none, batch (Ioffe and Szegedy 2015) or layer (Ba et al. 2016)."""

from torch import nn

from fanin.errors import unknown

NORMS = ("none", "batch", "layer")


def check_norm(name: str) -> None:
    if name not in NORMS:
        raise unknown("regularization.norm", name, NORMS)


def norm_1d(name: str, features: int) -> nn.Module:
    """For activations of shape (N, features)."""
    check_norm(name)
    if name == "batch":
        return nn.BatchNorm1d(features)
    return nn.LayerNorm(features) if name == "layer" else nn.Identity()


def norm_2d(name: str, channels: int) -> nn.Module:
    """For activations of shape (N, C, H, W). Layer norm averages over C, H and W, and scales by channel."""
    check_norm(name)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if name == "layer" else nn.Identity()
