"""Internal covariate shift as Santurkar et al. 2018 (definition 2.1) measure it: what the layers below do to a layer's
gradient by their own step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.stats.batch_mode import batch_mode
from fanin.stats.gains import layers_of
from fanin.stats.reductions import ratio


@dataclass(frozen=True)
class Stage:
    """A layer with the parameters that the pass meets from it up to the next layer: its own `layer`, and `all` of
    them, those of norms and gates too. Before the first layer the path is None."""

    path: str | None
    layer: tuple[nn.Parameter, ...]
    all: tuple[nn.Parameter, ...]


def covariate_shift(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float) -> dict[str, float]:
    """grad/L/covariate_shift = norm(G - G') and grad/L/covariate_shift_cosine, that of G and G'.

    G is the gradient of the mean cross-entropy by layer L's weights and biases, G' the same after all parameters
    that the pass meets before L have taken a step of `lr` down their own gradient, those of L and above as they
    were; both of images (N, ...) with their labels (N,). The first layer has none below: 0 and 1. A backward pass
    and one more a layer, in `batch_mode`.
    Afterwards every parameter has its bits again.
    """
    stages = stages_of(model, images)
    parameters = [parameter for stage in stages for parameter in stage.all]
    gradients = dict(zip(parameters, _gradients(model, images, labels, parameters), strict=True))
    kept = [parameter.detach().clone() for parameter in parameters]
    found, moved = {}, False
    try:
        for stage in stages:
            if stage.path and stage.layer:
                before = [gradients[parameter] for parameter in stage.layer]
                after = _gradients(model, images, labels, stage.layer) if moved else before
                shift, cosine = compare(before, after) if moved else (0.0, 1.0)
                found[f"grad/{stage.path}/covariate_shift"] = shift
                found[f"grad/{stage.path}/covariate_shift_cosine"] = cosine
            with torch.no_grad():
                for parameter in stage.all:
                    parameter.sub_(gradients[parameter], alpha=lr)
                    moved = True
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    return found


@torch.no_grad()
def stages_of(model: nn.Module, images: Tensor) -> list[Stage]:
    """All trained parameters in the order in which a pass first meets their modules, parted by layers."""
    met: dict[nn.Module, None] = {model: None}  # `forward` runs no hook of the model itself

    def meet(module: nn.Module, inputs: object) -> None:
        met.setdefault(module)

    handles = [module.register_forward_pre_hook(meet) for module in model.modules()]
    try:
        with batch_mode(model, images):
            model.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return _parted(met, {layer: path for path, layer in layers_of(model).items()})


def _parted(met: dict[nn.Module, None], paths: dict[nn.Module, str]) -> list[Stage]:
    seen: set[nn.Parameter] = set()
    stages = [Stage(None, (), ())]
    for module in met:
        new = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in seen]
        seen.update(new)
        if module in paths:
            stages.append(Stage(paths[module], tuple(new), tuple(new)))
        else:
            last = stages[-1]
            stages[-1] = Stage(last.path, last.layer, (*last.all, *new))
    return stages


def compare(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """norm(before - after), and the cosine between them."""
    first, second = (torch.cat([part.flatten().double().cpu() for part in parts]) for parts in (before, after))
    cosine = ratio(float(first @ second), float(first.norm() * second.norm()))
    return float((first - second).norm()), cosine


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    with batch_mode(model, images), torch.enable_grad():
        loss = F.cross_entropy(model.forward(images), labels)
        found = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    pairs = zip(parameters, found, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]
