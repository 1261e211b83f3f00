"""Readings of one forward and one backward pass, taken while they run: later operations may be in place."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fanin.stats.kinds import ACTIVATIONS, RECTIFIERS
from fanin.stats.reductions import moments, norm, rms, share
from fanin.stats.trail import Passed

SELU_PLATEAU = 1.0507009873554805 * 1.6732632423543772  # scale * alpha of Klambauer et al. 2017


class Trace:
    """Hears of a model's layers and activations (trail.py) and keeps what statistics need of them."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        self.layers = layers
        self.paths: dict[nn.Module, str] = {layer: path for path, layer in layers.items()}
        self.readings: dict[str, Tensor] = {}

    def read(self, module: nn.Module, given: Tensor, output: Tensor, source: Passed | None) -> None:
        """A reader for `following` (trail.py): notes what the layer's or activation's output shows."""
        if module in self.paths:
            self._read_layer(self.paths[module], output)
        elif source and isinstance(module, ACTIVATIONS):
            self._read_activation(module, output.detach(), path=source.path)

    def _read_layer(self, path: str, output: Tensor) -> None:
        if f"forward/{path}" in self.readings:
            return  # a layer used twice is measured where it is used first
        self.readings[f"forward/{path}"] = rms(output.detach())
        if output.requires_grad:
            output.register_hook(partial(self._read_gradient, path))

    def _read_gradient(self, path: str, gradient: Tensor) -> None:
        self.readings[f"backward/{path}"] = norm(gradient)

    @torch.no_grad()
    def _read_activation(self, module: nn.Module, output: Tensor, *, path: str) -> None:
        key = f"activation/{path}"
        if f"{key}/mean" in self.readings:
            return
        self.readings[f"{key}/mean"], self.readings[f"{key}/std"] = moments(output)
        none = self.readings[f"{key}/mean"].new_zeros(())
        dead, saturated = _dead(module, output, layer=self.layers[path]), _saturated(module, output)
        self.readings[f"{key}/dead"] = none if dead is None else share(dead)
        self.readings[f"{key}/saturated"] = none if saturated is None else share(saturated)


def _dead(module: nn.Module, output: Tensor, *, layer: nn.Module) -> Tensor | None:
    """Which units never leave 0; None where they cannot die: only a rectifier's get no gradient then."""
    if not isinstance(module, RECTIFIERS):
        return None
    unit = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return output.amax([axis for axis in range(output.ndim) if axis != unit]) <= 0


def _saturated(module: nn.Module, output: Tensor) -> Tensor | None:
    """Which outputs lie in the outer 5 % of the bounded side or sides of the activation; None if it has none."""
    match module:
        case nn.Sigmoid() | nn.Hardsigmoid():
            return (output - 0.5).abs() > 0.45
        case nn.Tanh() | nn.Softsign() | nn.Hardtanh(min_val=-1, max_val=1):
            return output.abs() > 0.95
        case nn.ReLU6():
            return output > 0.95 * 6
        case nn.ELU() | nn.CELU():
            return output < -0.95 * module.alpha
        case nn.SELU():
            return output < -0.95 * SELU_PLATEAU
        case _:
            return None
