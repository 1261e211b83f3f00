"""Unsupervised pretraining of a multi-layer perceptron as a deep belief network (Hinton et al. 2006)."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from fanin import ranges
from fanin.errors import ConfigError, require, unknown
from fanin.initializers import rbm
from fanin.initializers.closed_form import fill, standard_normal
from fanin.initializers.whole import Rehearsal, Step, checked_by
from fanin.randomness import Streams
from fanin.stats.kinds import ACTIVATIONS

RANGES = {
    "k": ranges.whole(1),
    "epochs": ranges.whole(1),
    "batch_size": ranges.whole(1),
    "lr": ranges.number(above=0),
    "gaussian_lr": ranges.number(above=0),
    "momentum": ranges.number(least=0, below=1),
    "final_momentum": ranges.number(least=0, below=1),
    "switch_epoch": ranges.whole(0),
    "weight_cost": ranges.number(least=0),
    "std": ranges.number(above=0),
    "held_out": ranges.number(above=0, below=1),
}
MLP = "dbn pretrains a multi-layer perceptron: linear layers, each fed by the activations of the one before"


def check_dbn(
    model: nn.Module, *, in_shape: tuple[int, ...], count: int, scale: str, visible: str, held_out: float
) -> None:
    """Raise a ConfigError for a model, a scale of the pixels or a split of the `count` images that dbn cannot use."""
    if visible not in rbm.VISIBLE:
        raise unknown("initializer.visible", visible, rbm.VISIBLE)
    wrong, right, other = {"binary": ("standard", "unit", "gaussian"), "gaussian": ("unit", "standard", "binary")}[
        visible
    ]
    if scale == wrong:
        out = f"take data.scale={right} or initializer.visible={other}"
        raise ConfigError(f"initializer.visible: {visible} units are not for pixels of data.scale={scale}; {out}")
    rule = f"must leave one of the {count} training images on each side"
    require(1 <= held_out_count(count, held_out) < count, "initializer.held_out", rule, held_out)
    perceptron(model, in_shape)


def brief_dbn(*, epochs: int, batch_size: int, count: int) -> Rehearsal:
    """One epoch a layer, of ten batches."""
    few = min(count, max(20, 10 * batch_size))
    return Rehearsal({"epochs": 1}, few, epochs * count / few)


@checked_by(check_dbn, ranges=RANGES, brief=brief_dbn)
@torch.no_grad()
def dbn(
    model: nn.Module,
    *,
    images: Tensor,
    streams: Streams,
    visible: str,
    k: int,
    epochs: int,
    batch_size: int,
    lr: float,
    gaussian_lr: float,
    momentum: float,
    final_momentum: float,
    switch_epoch: int,
    weight_cost: float,
    std: float,
    held_out: float,
) -> Iterator[Step]:
    """Train a restricted Boltzmann machine on the images, a second one on the first one's mean hidden
    activations, and so on; their weights and hidden biases become those of the hidden layers.

    The first machine's visible units are `visible`, and gaussian ones learn at `gaussian_lr`; all others are
    binary. Weights start from N(0, std^2), and so do those of the output layer, which no machine trains. A share
    `held_out` of the training images is kept from the machines, for their free energy to be compared.

    A layer of sigmoids computes just what its machine's hidden units do. A ReLU, or any other activation, takes
    over weights and biases as they are: its features are the same ones, on another scale.

    Yields, for each layer and epoch, `<layer>/reconstruction_error` and `<layer>/free_energy_gap`; see rbm.Epoch.
    """
    rows = images.flatten(1)
    check_pixels(rows, visible=visible)
    *hidden, (path, output) = perceptron(model, images.shape[1:]).items()
    rule = rbm.Rule(k, lr, momentum, final_momentum, switch_epoch, weight_cost, batch_size)
    split = held_out_count(len(rows), held_out)
    fill(output.weight, draw(output, path, std=std, streams=streams))
    for path, layer in hidden:
        machine = rbm.start(draw(layer, path, std=std, streams=streams), rows[split:], visible=visible)
        how = replace(rule, lr=gaussian_lr) if visible == "gaussian" else rule
        generator = streams.generator("init", f"{path} pretraining", rows.device)
        for epoch in rbm.train(machine, rows[split:], rows[:split], rule=how, epochs=epochs, generator=generator):
            measured = {"reconstruction_error": epoch.reconstruction_error, "free_energy_gap": epoch.free_energy_gap}
            yield Step(epoch.number, {f"{path}/{name}": value for name, value in measured.items()})
        fill(layer.weight, machine.weight)
        fill(layer.bias, machine.hidden_bias)
        rows, visible = rbm.hidden_mean(machine, rows), "binary"


def draw(layer: nn.Linear, path: str, *, std: float, streams: Streams) -> Tensor:
    """N(0, std^2), from the stream that every initializer draws this layer's weight from."""
    weight = standard_normal(layer.weight, streams.generator("init", f"{path}.weight"))
    return weight.mul_(std).to(layer.weight.device)


def held_out_count(count: int, share: float) -> int:
    """How many of `count` images the `share` is: at least one."""
    return max(1, round(count * share))


def check_pixels(rows: Tensor, *, visible: str) -> None:
    """What data.scale=none lets through."""
    low, high, mean, std = (value.item() for value in (rows.min(), rows.max(), rows.mean(), rows.std()))
    if visible == "binary":
        rule = "binary units need pixels in [0, 1] (data.scale=unit), and these reach from"
        require(low >= 0 and high <= 1, "initializer.visible", rule, [low, high])
    else:
        rule = "gaussian units need pixels of mean 0 and standard deviation 1 (data.scale=standard), these have"
        require(abs(mean) < 0.1 and 0.8 < std < 1.25, "initializer.visible", rule, [mean, std])


@torch.no_grad()
def perceptron(model: nn.Module, in_shape: tuple[int, ...]) -> dict[str, nn.Linear]:
    """The linear layers of `model` by path, first to last, found by showing it two black images.

    Raises ConfigError unless each receives exactly the activations of the one before, and the last one's output
    is the model's.
    """
    refuse_others(model)
    paths = {module: path for path, module in model.named_modules()}
    layers: dict[str, nn.Linear] = {}
    signal: Tensor | None = None  # what the layer last passed has become
    activations = 0

    def follow(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal signal, activations
        if isinstance(module, nn.Linear):
            fed = activations == 1 and inputs[0] is signal if layers else inputs[0].shape[1] == prod(in_shape)
            if not fed or paths[module] in layers:
                raise ConfigError(f"initializer: {MLP}; {paths[module]} is fed by something else")
            layers[paths[module]], signal, activations = module, output, 0
        elif inputs and inputs[0] is signal:
            signal, activations = output, activations + isinstance(module, ACTIVATIONS)

    handles = [m.register_forward_hook(follow) for m in model.modules() if not any(m.children())]
    was_training = model.training
    try:
        parameter = next(model.parameters())
        logits = model.eval().forward(torch.zeros(2, *in_shape, device=parameter.device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if logits is not signal or activations or len(layers) < 2:
        why = "there is no hidden layer here" if len(layers) < 2 else "more follows on the last one here"
        raise ConfigError(f"initializer: {MLP}; {why}")
    return layers


def refuse_others(model: nn.Module) -> None:
    """Raise a ConfigError for a module with parameters that is no linear layer with a bias."""
    for path, module in model.named_modules():
        own = any(True for _ in module.parameters(recurse=False))
        if (
            own
            and not isinstance(module, ACTIVATIONS)
            and not (isinstance(module, nn.Linear) and module.bias is not None)
        ):
            kind = "has no bias" if isinstance(module, nn.Linear) else f"is a {type(module).__name__}"
            out = "take a model such as mlp, with regularization.norm=none"
            raise ConfigError(f"initializer: {MLP}; {path} {kind}; {out}")
