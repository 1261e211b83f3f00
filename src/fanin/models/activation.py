"""Activation functions by name."""

from collections.abc import Callable

from torch import nn

from fanin.errors import unknown

# None works in place: statistics read a layer's output after its activation has run.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softsign": nn.Softsign,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """A fresh activation module. Raises ConfigError for an unknown name."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("model.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
