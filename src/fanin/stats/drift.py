"""How the inputs of activations move while a network trains: their percentiles (Ioffe and Szegedy 2015, figure 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fanin.evaluation import wide_dtype
from fanin.stats.gains import layers_of
from fanin.stats.kinds import ACTIVATIONS
from fanin.stats.reductions import ratio
from fanin.stats.trail import Passed, following

PERCENTILES = {"p15": 0.15, "p50": 0.5, "p85": 0.85}


@torch.no_grad()
def percentiles(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """By layer (3, units): the 15th, 50th and 85th percentile of what each unit gives to its activation, over the
    images (of a conv: and positions), in the mode the model is in."""
    layers = layers_of(model)
    entering: dict[nn.Module, Tensor] = {}
    found: dict[str, Tensor] = {}

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entering[module] = inputs[0].clone()  # the activation may work in place

    def read(module: nn.Module, given: Tensor, output: Tensor, source: Passed | None) -> None:
        if source and module in entering and source.path not in found:
            units = entering.pop(module).movedim(-1 if isinstance(layers[source.path], nn.Linear) else 1, 0)
            found[source.path] = quantiles(units.flatten(1))

    activations = (module for module in model.modules() if isinstance(module, ACTIVATIONS))
    handles = [module.register_forward_pre_hook(enter) for module in activations]
    try:
        with following(model, layers, read):
            model.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def quantiles(units: Tensor) -> Tensor:
    """(3, units) of values (units, n), between two of them on the line through both."""
    ordered = units.to(wide_dtype(units.device)).sort(1).values  # torch.quantile takes 16 million numbers at most
    last = ordered.shape[1] - 1
    places = [share * last for share in PERCENTILES.values()]
    ends = [(ordered[:, int(place)], ordered[:, min(int(place) + 1, last)], place % 1) for place in places]
    return torch.stack([torch.lerp(low, high, part) for low, high, part in ends])


def drifts(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, float]:
    """activation/L/p15, p50 and p85, means over units; and activation/L/drift where there is a `before`: the mean of
    |change| over units and percentiles, over the mean of p85 - p15 over units as they are now."""
    found: dict[str, float] = {}
    for path, levels in now.items():
        means = levels.mean(1).tolist()
        found |= {f"activation/{path}/{name}": mean for name, mean in zip(PERCENTILES, means, strict=True)}
        if path in before:
            moved, spread = (levels - before[path]).abs().mean(), (levels[2] - levels[0]).mean()
            found[f"activation/{path}/drift"] = ratio(float(moved), float(spread))
    return found
