"""Before training: what an initialized model does to signal and gradient, in milliseconds; and whether it is hopeless.

Theory (stats/prediction.py) and one forward and backward pass of a small real batch, both as training would see it:
dropout drops, batch norm takes the batch's own averages. Verdicts have the thresholds of diagnose.py:

    symmetric   a hidden layer's units are copies, and neither biases nor dropout tell them apart
    explodes    E[z^2] of the logits > 1e4 E[x^2], or the squared gradient grows by 1e6 from the logits to layer one
    vanishes    the squared gradient of the first layer < 1e-6 times that of the logits, zero included; not where
                only the last layer is shut (zeros), which its first step ends
    ok          none of these

A branch that passes nothing on at first (fixup, rezero) is no end of the signal, which goes around it: its layers are
left out of all products.
"""

import math
from collections.abc import Container, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.diagnose import EXPLODED, STEEP, SYMMETRIC, VANISHED
from fanin.stats.gains import Gains, layers_of, measure_gains
from fanin.stats.kinds import ACTIVATIONS, DROPOUTS
from fanin.stats.prediction import predict
from fanin.stats.trail import Passed, following
from fanin.stats.weights import row_spread

BATCH = 64  # images


def fly(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The verdict on a model, its reason, and geometric means over layers of the gains, measured and predicted
    (None where there is none). The model is used up: its batch norms and dropout streams have moved."""
    model.train()
    predicted, measured = predict(model, images), measure_gains(model, images, labels)
    verdict, reason = judge(model, measured, images, labels)
    return {
        "verdict": verdict,
        "reason": reason,
        "forward": mean_gain(measured.forward.values()),
        "backward": mean_gain(measured.backward.values()),
        "predicted_forward": mean_gain(predicted.forward.values()),
        "predicted_backward": mean_gain(predicted.backward.values()),
    }


def judge(model: nn.Module, gains: Gains, images: Tensor, labels: Tensor) -> tuple[str, str]:
    """A verdict, and the number that shows it."""
    forward, backward = (math.prod(passing(side.values())) for side in (gains.forward, gains.backward))
    if path := twins(model, hidden=hidden_layers(model, images)):
        return "symmetric", f"all units of {path} are the same"
    if not forward <= EXPLODED:
        return "explodes", f"signal x {forward**0.5:.2g} from input to logits"
    if not backward <= STEEP:
        return "explodes", f"gradient x {backward**0.5:.2g} from logits to input"
    if gains.backward and backward < VANISHED and not is_shut(model, gains, images, labels):
        return "vanishes", f"layer one gets {backward**0.5:.1g} of the gradient"
    return "ok", ""


def is_shut(model: nn.Module, gains: Gains, images: Tensor, labels: Tensor) -> bool:
    """Whether the last layer lets nothing back, but gets a gradient itself: zero_last, fixup, partial_identity. Not in
    a network of zeros."""
    layers, path = layers_of(model), [*gains.forward]
    if [*gains.backward.values()][-1] != 0 or not layers[path[0]].weight.any():
        return False
    loss = F.cross_entropy(model.forward(images), labels)
    (gradient,) = torch.autograd.grad(loss, [layers[path[-1]].weight], allow_unused=True)
    return gradient is not None and bool(gradient.any())


@torch.no_grad()
def hidden_layers(model: nn.Module, images: Tensor) -> set[str]:
    """The layers whose outputs go into an activation, as those at the end of a branch do not; where the model's
    activations are no modules, all but the last."""
    layers, found = layers_of(model), set[str]()

    def read(module: nn.Module, given: Tensor, output: Tensor, source: Passed | None) -> None:
        if source and isinstance(module, ACTIVATIONS):
            found.add(source.path)

    with following(model, layers, read):
        model.forward(images[:2])
    return found or set(list(layers)[:-1])


def twins(model: nn.Module, *, hidden: Container[str]) -> str:
    """The first hidden layer all of whose units are, and will stay, the same; empty if there is none."""
    if any(isinstance(module, DROPOUTS) and float(getattr(module, "p", 0)) > 0 for module in model.modules()):
        return ""
    for path, layer in layers_of(model).items():
        alike = len(layer.weight) > 1 and row_spread(layer.weight) <= SYMMETRIC
        bias = layer.bias
        if path in hidden and alike and (bias is None or bool(torch.all(bias == bias[0]))):
            return path
    return ""


def passing(gains: Iterable[float]) -> list[float]:
    """The gains without those of layers that pass nothing on while others do: 0, and infinite after it."""
    known = list(gains)
    around = 0 in known and math.inf in known
    return [gain for gain in known if 0 < gain < math.inf] if around else known


def mean_gain(gains: Iterable[float]) -> float | None:
    """The geometric mean of what passes; 0 with a zero among them, None of nothing or where theory has no number."""
    known = passing(gain for gain in gains if not math.isnan(gain))
    if not known:
        return None
    if 0 in known or math.inf in known:
        return 0.0 if 0 in known else math.inf
    return math.exp(sum(map(math.log, known)) / len(known))
