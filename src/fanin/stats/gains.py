"""How a model passes signals on: the gains of the forward and the backward signal, layer by layer."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.stats.kinds import LAYERS
from fanin.stats.reductions import ratio, square
from fanin.stats.trace import Trace
from fanin.stats.trail import following


@dataclass(frozen=True)
class Gains:
    """By the layer's path, in the order of the pass; as signal/L/forward_gain and backward_gain are defined."""

    forward: dict[str, float]
    backward: dict[str, float]

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """By their keys, signal/L/<prefix>forward_gain and backward_gain."""
        forward = {f"signal/{path}/{prefix}forward_gain": gain for path, gain in self.forward.items()}
        return forward | {f"signal/{path}/{prefix}backward_gain": gain for path, gain in self.backward.items()}


def gains_between(forward: Mapping[str, float], backward: Mapping[str, float]) -> Gains:
    """From the z_l's root mean squares, the input's first, and the norms of their gradients."""
    ordered = [(path, backward[path]) for path in forward if path in backward]
    return Gains(
        {path: square(ratio(after, before)) for (_, before), (path, after) in pairwise(forward.items())},
        {path: square(ratio(nearer, farther)) for (path, nearer), (_, farther) in pairwise(ordered)},
    )


def measure_gains(model: nn.Module, images: Tensor, labels: Tensor) -> Gains:
    """The gains of one pass of images (N, C, H, W) with their labels (N,), in the mode the model is in.

    In training mode this draws dropout masks and moves the averages of batch norm.
    """
    layers = layers_of(model)
    trace = Trace(layers)
    weights = [layer.weight for layer in layers.values() if layer.weight.requires_grad]
    with torch.enable_grad(), following(model, layers, trace.read):
        loss = F.cross_entropy(model.forward(images), labels)
        torch.autograd.grad(loss, weights, allow_unused=True)
    found = {key: float(reading) for key, reading in trace.readings.items()}
    start = {"": math.sqrt(images.double().square().mean().item())}
    return gains_between(start | _under(found, "forward/"), _under(found, "backward/"))


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """The linear and convolutional layers by path, in the order in which they were built."""
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return {path or "model": module for path, module in modules if isinstance(module, LAYERS)}


def _under(found: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
