"""Activation functions by name."""

from collections.abc import Callable

from torch import Tensor, nn

from fanin.errors import unknown


class NoActivation(nn.Module):
    """phi(z) = z: a network of linear layers, whose learning is nonlinear all the same (Saxe et al. 2013). Not
    torch's Identity, which stands where a norm is left out: statistics tell the two apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x


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
    "linear": NoActivation,
}


def activation(name: str) -> nn.Module:
    """A fresh activation module. Raises ConfigError for an unknown name."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("model.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
