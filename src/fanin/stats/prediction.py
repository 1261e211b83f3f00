"""What mean field theory (meanfield.py) predicts for a model as it is built: the gains of every layer, untrained.

One pass of images tells which modules follow one another, and how long the inputs are; the rest is theory. Each
image has its own length q and mean m over the units of a layer, which go through

    layer        E[z^2] = a Var[h] + b E[h]^2 + E[bias^2] ...   a: mean over units of sum w^2, which is sigma_w^2;
                                                               b: mean over units of (sum w)^2, which is a again for
                                                               weights without a mean, and fan_in a for equal ones
    batch norm   to length 1 where the model trains; where it evaluates, new averages change nothing
    layer norm   to length 1
    activation   E[phi], E[phi^2], E[phi'^2] for z ~ N(m, q - m^2)
    dropout      E[h^2] / keep where the model trains

and gradients back through the same modules. At a convolution's border part of the kernel sees padding, which has
length 0. Behind anything else (pooling, a sum with a skip connection) theory starts anew from the measured length
of what comes in, and the gradient's gain across it is not predicted.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin import meanfield
from fanin.stats.gains import Gains, layers_of
from fanin.stats.kinds import ACTIVATIONS, BATCH_NORMS, DROPOUTS, LAYERS, NEUTRAL, SAMPLE_NORMS
from fanin.stats.trail import Passed, following

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ORDER = (BATCH_NORMS + SAMPLE_NORMS, ACTIVATIONS, DROPOUTS)  # in which theory can follow; each at most once


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Gains:
    """The gains of `model` on `images` (N, C, H, W), in the mode (training or not) that it is in.

    In training mode this pass draws dropout masks and moves the averages of batch norm.
    """
    links = _follow(model, images)
    lengths = [images.double().square().mean()]
    slopes: dict[int, Tensor] = {}
    state: _State | None = None
    for number, link in enumerate(links):
        if link.source is None or state is None:
            hidden = _measured(link)
        else:
            hidden, slope = _pass(state, link)
            slopes[number - 1] = slope
        state = _apply(link, hidden)
        lengths.append(state.length.mean())
    forward = {link.path: float(after / before) for link, (before, after) in zip(links, pairwise(lengths), strict=True)}
    return Gains(forward, dict(_backward(links, slopes)))


@dataclass(frozen=True)
class _Hidden:
    """What a layer is given: by image (N,), means over units and positions. `spread`: Var over its inputs within
    one patch; `square`: the squared mean over a patch; `varying`: the variance over the batch, mean over units."""

    mean: Tensor
    square: Tensor
    spread: Tensor
    varying: Tensor


@dataclass(frozen=True)
class _State:
    """A layer's output by image: its mean over units, E[z^2], and its variance over the batch."""

    mean: Tensor
    length: Tensor
    varying: Tensor


@dataclass(frozen=True)
class _Link:
    """A layer, the layer whose output it is given (None: something else), and the modules in between."""

    path: str
    layer: Layer
    given: Tensor
    source: str | None
    between: tuple[nn.Module, ...]


def _follow(model: nn.Module, images: Tensor) -> list[_Link]:
    layers = layers_of(model)
    names = {layer: path for path, layer in layers.items()}
    links: dict[str, _Link] = {}

    def read(module: nn.Module, given: Tensor, output: Tensor, source: Passed | None) -> None:
        if not isinstance(module, LAYERS) or names[module] in links:
            return
        path = names[module]
        last = next(reversed(links), None)
        known = source is not None and source.path == last and _is_known(source.modules)
        between = source.modules if source and known else ()
        links[path] = _Link(path, module, given, last if known else None, between)

    with following(model, layers, read):
        model.forward(images)
    return list(links.values())


def _is_known(modules: tuple[nn.Module, ...]) -> bool:
    places = [_place(module) for module in modules if not isinstance(module, NEUTRAL)]
    return None not in places and all(a < b for a, b in pairwise(places))  # type: ignore[operator]


def _place(module: nn.Module) -> int | None:
    return next((place for place, kinds in enumerate(ORDER) if isinstance(module, kinds)), None)


def _measured(link: _Link) -> _Hidden:
    """From the very input of a layer."""
    given = link.given.double()
    given = given.movedim(-1, 1) if isinstance(link.layer, nn.Linear) else given
    first, second = (_patches(link, values.mean(1, keepdim=True)) for values in (given, given.square()))
    varying = given.movedim(1, 0).flatten(1).var(1, correction=0).mean()
    mean, square, spread = (part.flatten(1).mean(1) for part in (first, first.square(), second - first.square()))
    return _Hidden(mean, square, spread, varying * _reach(link))


def _patches(link: _Link, values: Tensor) -> Tensor:
    """Means over the kernel's window, padding included, of values (N, 1, *positions)."""
    layer: Any = link.layer
    if isinstance(layer, nn.Linear):
        return values
    window = values.new_ones(1, 1, *layer.kernel_size)
    convolve: Any = CONVOLVE[len(layer.kernel_size)]
    return convolve(values, window / window.numel(), None, layer.stride, layer.padding, layer.dilation)


def _reach(link: _Link) -> float:
    """The part of the kernel's window that sees units, not padding; mean over positions."""
    if isinstance(link.layer, nn.Linear):
        return 1.0
    return float(_patches(link, torch.ones_like(link.given[:1, :1], dtype=torch.float64)).mean())


def _apply(link: _Link, hidden: _Hidden) -> _State:
    weight = link.layer.weight.detach().double().flatten(1)
    bias = link.layer.bias
    shift = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    rows = weight.sum(1)
    own, common = weight.square().sum(1).mean(), rows.square().mean()
    length = own * hidden.spread + common * hidden.square + 2 * (rows * shift).mean() * hidden.mean
    mean = rows.mean() * hidden.mean + shift.mean()
    return _State(mean, length + shift.square().mean(), own * hidden.varying)


def _pass(state: _State, link: _Link) -> tuple[_Hidden, Tensor]:
    """Through what lies between two layers: the next one's input, and by image the gain of the squared gradient
    on its way back."""
    mean, length, factor = state.mean, state.length, torch.ones_like(state.length)
    first, second, normed = mean, length, False
    for module in link.between:
        if isinstance(module, BATCH_NORMS) and module.training:
            factor, normed = factor / state.varying, True
            first, second = torch.zeros_like(mean), torch.ones_like(length)
        elif isinstance(module, SAMPLE_NORMS):
            factor = factor / (length - mean.square())
            first, second = torch.zeros_like(mean), torch.ones_like(length)
        elif isinstance(module, ACTIVATIONS):
            found = meanfield.moments(_double(module), second, mean=first)
            first, second, factor = found.mean, found.square, factor * found.slope
        elif isinstance(module, DROPOUTS) and module.training:
            keep = 1 - float(getattr(module, "p"))  # noqa: B009
            second, factor = second / keep, factor / keep
    reach = _reach(link)
    spread = (second - first.square()) * reach
    # Behind batch norm inputs are uncorrelated in the limit of depth: what varies over units varies over the batch.
    varying = spread.mean() if normed else spread.new_full((), torch.nan)
    return _Hidden(first * reach, first.square() * reach, spread, varying), factor * reach


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double() if any(True for _ in module.parameters()) else module


def _backward(links: list[_Link], slopes: dict[int, Tensor]) -> Iterator[tuple[str, float]]:
    """Each image's squared gradient, from the last layer of an unbroken chain back to its first."""
    gradient: Tensor | None = None
    found = []
    for number in reversed(range(len(links) - 1)):
        if number not in slopes:
            gradient = None
            continue
        after = links[number + 1]
        own = after.layer.weight.detach().double().flatten(1).square().sum(1).mean()
        gradient = torch.ones_like(slopes[number]) if gradient is None else gradient
        nearer = gradient * own * slopes[number]
        found.append((links[number].path, float(nearer.mean() / gradient.mean())))
        gradient = nearer
    yield from ((path, gain) for path, gain in reversed(found) if not math.isnan(gain))
