"""The restricted Boltzmann machine, trained by contrastive divergence (Hinton 2002; practice as in Hinton 2010).

Visible units v and binary hidden units h have the joint probability exp(-E(v, h)) / Z with

    binary visible units     E = -b v - c h - h W v
    gaussian ones            E = |v - b|^2 / 2 - c h - h W v      (of variance 1)

so that given one side, the units of the other are independent:

    p(h = 1 | v) = sigmoid(c + W v),    E[v | h] = sigmoid(b + h W), or b + h W for gaussian ones.

Summing over h gives the free energy F(v) = -log sum_h exp(-E), which is -b v (or |v - b|^2 / 2) less the sum of
softplus(c + W v) over the hidden units; p(v) = exp(-F(v)) / Z. The gradient of log p(v) by W is <h v> under
the data less <h v> under the model. CD-k puts the k-th step of a Gibbs chain that starts at the data in the place
of the model. Images are rows: (N, visible units).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VISIBLE = ("binary", "gaussian")
MONITORED = 1000  # images of each kind, at most, whose free energy is watched


@dataclass(frozen=True)
class Rbm:
    """weight: (hidden units, visible units), as in torch.nn.Linear."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    visible: str  # binary | gaussian


@dataclass(frozen=True)
class Rule:
    """How parameters move: each has a velocity, which is `momentum` times itself plus `lr` times the gradient.

    Momentum is `momentum` for `switch_epoch` epochs, `final_momentum` after them. `weight_cost` times the weight is
    taken from the weight's gradient.
    """

    k: int
    lr: float
    momentum: float
    final_momentum: float
    switch_epoch: int
    weight_cost: float
    batch_size: int


@dataclass(frozen=True)
class Gradient:
    """Of the mean log-likelihood, as CD-k estimates it; `error` is the mean squared difference between the
    images and what the first step of the chain expects in their place, per visible unit."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    error: Tensor


@dataclass(frozen=True)
class Epoch:
    """`reconstruction_error`: mean of Gradient.error over the epoch. `free_energy_gap`: mean free energy of
    images that are trained on less that of images that are not. It starts around 0; a machine that learns the
    images by heart, not what they have in common, drives it down."""

    number: int  # from 1
    reconstruction_error: float
    free_energy_gap: float


def hidden_mean(rbm: Rbm, visible: Tensor) -> Tensor:
    """p(h = 1 | v): (N, hidden units)."""
    return torch.sigmoid_(F.linear(visible, rbm.weight, rbm.hidden_bias))


def visible_mean(rbm: Rbm, hidden: Tensor) -> Tensor:
    """E[v | h]: (N, visible units)."""
    inputs = torch.addmm(rbm.visible_bias, hidden, rbm.weight)
    return torch.sigmoid_(inputs) if rbm.visible == "binary" else inputs


def free_energy(rbm: Rbm, visible: Tensor) -> Tensor:
    """F(v) of each image: (N,)."""
    hidden = F.softplus(F.linear(visible, rbm.weight, rbm.hidden_bias)).sum(1)
    if rbm.visible == "binary":
        return -(visible @ rbm.visible_bias) - hidden
    return (visible - rbm.visible_bias).square().sum(1) / 2 - hidden


def contrastive_divergence(rbm: Rbm, images: Tensor, *, k: int, generator: torch.Generator) -> Gradient:
    """CD-k on a batch. Units are sampled, but for the hidden ones that end up in the statistics."""
    positive = negative = hidden_mean(rbm, images)
    visible, error = images, None
    for _ in range(k):
        mean = visible_mean(rbm, draw_binary(negative, generator))
        if error is None:
            error = (images - mean).square().mean()
        visible = draw_binary(mean, generator) if rbm.visible == "binary" else draw_normal(mean, generator)
        negative = hidden_mean(rbm, visible)
    assert error is not None, "k >= 1"
    count = len(images)
    return Gradient(
        weight=torch.addmm(positive.T @ images, negative.T, visible, alpha=-1).div_(count),
        visible_bias=(images - visible).mean(0),
        hidden_bias=(positive - negative).mean(0),
        error=error,
    )


def draw_binary(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Comparing uniform numbers is several times as fast as torch.bernoulli, and bears a NaN."""
    return torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype).lt(mean).to(mean.dtype)


def draw_normal(mean: Tensor, generator: torch.Generator) -> Tensor:
    """N(mean, 1), in the shape of `mean`."""
    return mean + torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


def start(weight: Tensor, images: Tensor, *, visible: str) -> Rbm:
    """An untrained machine: hidden biases 0; visible ones such that units which hear nothing from the hidden
    ones have the images' means: log(p / (1 - p)), or the mean itself for gaussian ones.

    p counts half an image more with the pixel on and half a one with it off, or a pixel that is never on would
    need an infinite bias.
    """
    mean = images.mean(0)
    if visible == "binary":
        mean = torch.logit((mean * len(images) + 0.5) / (len(images) + 1))
    return Rbm(weight, mean, weight.new_zeros(len(weight)), visible)


@torch.no_grad()
def train(
    rbm: Rbm, images: Tensor, held_out: Tensor, *, rule: Rule, epochs: int, generator: torch.Generator
) -> Iterator[Epoch]:
    """Train `rbm` in place on `images`, in an order that `generator` draws anew for each epoch."""
    parameters = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for number in range(1, epochs + 1):
        momentum = rule.momentum if number <= rule.switch_epoch else rule.final_momentum
        order = torch.randperm(len(images), generator=generator, device=images.device)
        errors = images.new_zeros(())
        for index in order.split(rule.batch_size):
            found = contrastive_divergence(rbm, images.index_select(0, index), k=rule.k, generator=generator)
            errors += found.error * len(index)
            found.weight.sub_(rbm.weight, alpha=rule.weight_cost)
            gradients = found.weight, found.visible_bias, found.hidden_bias
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                parameter.add_(velocity.mul_(momentum).add_(gradient, alpha=rule.lr))
        yield Epoch(number, errors.item() / len(images), free_energy_gap(rbm, images, held_out))


def free_energy_gap(rbm: Rbm, images: Tensor, held_out: Tensor) -> float:
    """Mean free energy, in nats, of the trained images minus that of the held-out ones, at most `MONITORED` of each; it
    falls as the machine overfits (Hinton 2010, section 6)."""
    trained, others = (free_energy(rbm, part[:MONITORED]).mean() for part in (images, held_out))
    return (trained - others).item()
