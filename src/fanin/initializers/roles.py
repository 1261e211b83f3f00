"""What an initializer may know of a layer beyond its weight: where it stands in the model, and what feeds it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from fanin.models.dropout import Dropout, StochasticDepth

DROPOUTS = (Dropout, _DropoutNd)


@dataclass(frozen=True)
class Layer:
    """One linear or convolutional layer of `count`, in the order that the signal passes them.

    `dropout` is the probability with which an input of the layer is dropped in training: that of the dropout
    modules that ran since the layer before.
    """

    path: str  # of its module, "layers.0"
    module: nn.Linear | _ConvNd
    position: int  # 0 for the first
    count: int
    dropout: float
    width: int  # units of the model's first layer, by which narrow and wide ones of a family are told apart

    @property
    def first(self) -> bool:
        """Whether it is given the images."""
        return self.position == 0

    @property
    def last(self) -> bool:
        """Whether it gives the logits."""
        return self.position == self.count - 1


def survey(model: nn.Module, in_shape: tuple[int, ...]) -> dict[str, Layer]:
    """The layers of `model` by path, found by showing it two black images of `in_shape` (C, H, W).

    The model stays as it was. A layer that is not called as a module (attention does so) comes before the last.
    """
    paths = {module: path for path, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    dropped = watch(model, in_shape)
    called = [module for module in dropped if module in paths]
    order = [*called[:-1], *(module for module in paths if module not in dropped), *called[-1:]]
    width = units_out(order[0]) if order else 0
    return {
        paths[module]: Layer(paths[module], module, position, len(order), dropped.get(module, 0.0), width)
        for position, module in enumerate(order)
    }


def units_out(module: nn.Linear | _ConvNd) -> int:
    """Features or channels out."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


@torch.no_grad()
def watch(model: nn.Module, in_shape: tuple[int, ...]) -> dict[nn.Linear | _ConvNd, float]:
    """The layers in the order of their first call, each with the dropout before it."""
    seen: dict[nn.Linear | _ConvNd, float] = {}
    kept = 1.0

    def note(module: nn.Module, _: object) -> None:
        nonlocal kept
        if isinstance(module, StochasticDepth):
            return  # it drops what is added to the signal, not the signal
        if isinstance(module, DROPOUTS):
            kept *= 1 - module.p
        elif isinstance(module, nn.Linear | _ConvNd):
            seen.setdefault(module, 1 - kept)
            kept = 1.0

    watched = [module for module in model.modules() if isinstance(module, (nn.Linear, _ConvNd, *DROPOUTS))]
    hooks = [module.register_forward_pre_hook(note) for module in watched]
    was_training = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(2, *in_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen
