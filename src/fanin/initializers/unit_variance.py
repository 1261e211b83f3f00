"""Layer-sequential unit variance (Mishkin and Matas 2015): what theory aims at, done by measuring."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fanin import ranges
from fanin.errors import ConfigError
from fanin.initializers.layers import check_weight, fill_weights
from fanin.initializers.whole import checked_by
from fanin.randomness import Streams

RANGES = {
    "tolerance": ranges.number(above=0, below=1),
    "iterations": ranges.whole(1),
    "batch_size": ranges.whole(2),
}
CONSTANT = 1e-12  # a variance below this is rounding


def check_lsuv(model: nn.Module, *, weight: Callable[..., None], in_shape: tuple[int, ...], count: int) -> None:
    """Raise a ConfigError for options, or fewer than two training images, that lsuv cannot use."""
    check_weight(model, weight, option="weight", in_shape=in_shape)
    if count < 2:
        raise ConfigError("initializer: lsuv measures a variance: it needs at least 2 training images (data.n_train)")


@checked_by(check_lsuv, ranges=RANGES)
@torch.no_grad()
def lsuv(
    model: nn.Module,
    *,
    images: Tensor,
    streams: Streams,
    weight: Callable[..., None],
    tolerance: float,
    iterations: int,
    batch_size: int,
) -> None:
    """Fill the weights by `weight`, then in the order in which `images` pass the layers, W /= std(output) until
    the output's variance, over images, units and places, is within `tolerance` of 1: at most `iterations` times.

    The paper's `weight` is orthonormal. With biases of 0 one division is exact; others take a few. `images` may
    have any scale (the first layer takes it up), but must vary: a ConfigError otherwise. Batch norm normalises
    by the batch, as it will in training; dropout is off. A layer that is passed twice is scaled at the first time.
    """
    images = images[:batch_size]
    if (images == images[:1]).all():
        rule = f"needs images that differ, and the {len(images)} it looks at are all the same"
        raise ConfigError(f"initializer: lsuv {rule}; take other data, or an initializer that does not look at them")
    fill_weights(model, weight=weight, streams=streams, in_shape=images.shape[1:])
    paths = {layer: path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)}
    done: set[nn.Module] = set()

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear | _ConvNd)
        if layer not in done:
            done.add(layer)
            rescale(layer, inputs[0], path=paths[layer], tolerance=tolerance, iterations=iterations)

    handles = [layer.register_forward_pre_hook(scale) for layer in paths]
    try:
        with by_the_batch(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def rescale(layer: nn.Linear | _ConvNd, inputs: Tensor, *, path: str, tolerance: float, iterations: int) -> None:
    """Divide the weight of `layer` until its output on `inputs` has variance 1; a ConfigError where it has none."""
    for _ in range(iterations):
        variance = layer.forward(inputs).var(correction=0).item()
        if variance <= CONSTANT:
            raise ConfigError(
                f"initializer: lsuv cannot scale layer {path}: its output is the same for every image and unit; "
                "take another `weight`"
            )
        if abs(variance - 1) < tolerance:
            return
        layer.weight.div_(variance**0.5)


@contextmanager
def by_the_batch(model: nn.Module) -> Iterator[None]:
    """Evaluation, but for batch norm, which has no averages yet and normalises by the batch."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = isinstance(module, _NormBase)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
