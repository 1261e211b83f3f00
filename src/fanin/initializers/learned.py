"""Initializers that learn how large each weight tensor starts, by gradients of gradients.

Both leave every tensor's direction to an initializer of one weight and learn its norm: metainit without data
(Dauphin and Schoenholz 2019), gradinit with (Zhu et al. 2021).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fanin import ranges
from fanin.errors import ConfigError, unknown
from fanin.initializers.layers import check_weight, fill_weights
from fanin.initializers.unit_variance import by_the_batch
from fanin.initializers.whole import Rehearsal, Step, checked_by
from fanin.randomness import Streams

BRIEF = 4  # steps whose time is measured before a sweep
REPORTED = 10  # steps between two points of a curve
SMALLEST = 1e-3  # of its first norm: below it a tensor's direction would be lost, or its sign turned
UPDATES = ("sgd", "adam")
METAINIT = {
    "steps": ranges.whole(1),
    "lr": ranges.number(above=0),
    "momentum": ranges.number(least=0, below=1),
    "eps": ranges.number(above=0),
    "batch_size": ranges.whole(2),
}
GRADINIT = {
    "steps": ranges.whole(1),
    "lr": ranges.number(above=0),
    "eta": ranges.number(above=0),
    "gamma": ranges.number(above=0),
    "min_scale": ranges.number(above=0, below=1),
    "clip": ranges.number(above=0),
    "batch_size": ranges.whole(2),
}


def check_metainit(model: nn.Module, *, weight: Callable[..., None], in_shape: tuple[int, ...]) -> None:
    """Raise a ConfigError for options or a model that metainit cannot use."""
    check_weight(model, weight, option="weight", in_shape=in_shape)
    check_derivatives(model, in_shape, lambda loss, parameters: gradient_quotient(loss, parameters, eps=1.0))


def brief_steps(*, steps: int, batch_size: int, count: int) -> Rehearsal:
    """The first `BRIEF` steps."""
    few = min(steps, BRIEF)
    return Rehearsal({"steps": few}, min(count, 2 * batch_size), steps / few)


@checked_by(check_metainit, ranges=METAINIT, brief=brief_steps)
def metainit(
    model: nn.Module,
    *,
    streams: Streams,
    images: Tensor,
    weight: Callable[..., None],
    steps: int,
    lr: float,
    momentum: float,
    eps: float,
    batch_size: int,
) -> Iterator[Step]:
    """Fill the weights by `weight`, then move their norms, by the signs of their gradients, to where the gradient
    quotient is small: where a step of gradient descent hardly changes the gradient.

    Each step draws inputs from N(0, 1) and random labels: of `images` only shape and device are used. Yields
    `gradient_quotient`, the mean of the last steps.
    """
    fill_weights(model, weight=weight, streams=streams, in_shape=images.shape[1:])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    least = [SMALLEST * tensor.norm().item() for tensor in weights]
    speeds = [0.0] * len(weights)
    generator = streams.generator("init", "metainit", images.device)
    quotients: list[Tensor] = []
    for number in range(1, steps + 1):
        with by_the_batch(model):
            loss = random_loss(model, images, batch_size=batch_size, generator=generator)
            quotient = gradient_quotient(loss, parameters, eps=eps)
            gradients = slopes(quotient, weights)
        for place, (tensor, gradient) in enumerate(zip(weights, gradients, strict=True)):
            slope = (tensor.detach() * gradient).sum()  # by the norm, but for a positive factor
            speeds[place] = momentum * speeds[place] - lr * slope.sign().item()
            resize(tensor, max(least[place], tensor.detach().norm().item() + speeds[place]))
        quotients.append(quotient.detach())
        if number % REPORTED == 0 or number == steps:
            yield Step(number, {"gradient_quotient": torch.stack(quotients).mean().item()})
            quotients.clear()


def random_loss(model: nn.Module, images: Tensor, *, batch_size: int, generator: torch.Generator | None) -> Tensor:
    """Cross-entropy of images that are noise, with labels that are."""
    noise = torch.randn((batch_size, *images.shape[1:]), generator=generator, device=images.device)
    logits = model.forward(noise)
    labels = torch.randint(logits.shape[1], (batch_size,), generator=generator, device=images.device)
    return F.cross_entropy(logits, labels)


def gradient_quotient(loss: Tensor, parameters: Sequence[Tensor], *, eps: float) -> Tensor:
    """The mean over all entries of |(g - H g) / (g +- eps) - 1|, with g the gradient of `loss`, H its Hessian
    and the sign of eps that of g: 0 where the loss is linear. Differentiable."""
    gradients = differentiable(loss, parameters)
    energy = energy_of(gradients)
    if energy.requires_grad:
        products = differentiable(energy, parameters)
    else:  # the gradient is the same everywhere
        products = tuple(torch.zeros_like(gradient) for gradient in gradients)
    total = loss.new_zeros(())
    for gradient, product in zip(gradients, products, strict=True):
        shift = torch.where(gradient.detach() >= 0, eps, -eps)
        total = total + ((gradient - product) / (gradient + shift) - 1).abs().sum()
    return total / sum(parameter.numel() for parameter in parameters)


@torch.no_grad()
def resize(tensor: Tensor, norm: float) -> None:
    """Scale `tensor` in place to the Euclidean `norm`; one of zeros has no direction and stays."""
    old = tensor.norm()
    if old > 0:
        tensor.mul_(norm / old)


def check_derivatives(
    model: nn.Module, in_shape: tuple[int, ...], measure: Callable[[Tensor, Sequence[Tensor]], Tensor]
) -> None:
    """Refuse a model with an operation through which torch cannot differentiate often enough for `measure`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    generator = None if device.type == "meta" else torch.Generator(device)
    try:
        with by_the_batch(model):
            images = torch.empty((1, *in_shape), device=device)
            loss = random_loss(model, images, batch_size=2, generator=generator)
            slopes(measure(loss, parameters), parameters)
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            return  # the meta device does not know an operation: it will be tried for real
        raise ConfigError(
            f"initializer: takes gradients of gradients, and in this model the {error}; take another model.activation"
        ) from error


def check_gradinit(model: nn.Module, *, weight: Callable[..., None], update: str, in_shape: tuple[int, ...]) -> None:
    """Raise a ConfigError for options or a model that gradinit cannot use."""
    check_weight(model, weight, option="weight", in_shape=in_shape)
    check_derivatives(model, in_shape, lambda loss, parameters: energy_of(differentiable(loss, parameters)))
    if update not in UPDATES:
        raise unknown("initializer.update", update, UPDATES)


@dataclass
class Scales:
    """One factor per tensor, moved by Adam; the objective and the constraint have moments of their own."""

    values: list[float]
    lr: float
    clip: float
    least: list[float]
    moments: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)

    def descend(self, slopes: Sequence[float], *, of: str) -> None:
        """One step of Adam (Kingma and Ba 2015) on the values, by their slopes, each clipped, with the moments kept for
        the loss named `of`."""
        state = self.moments.setdefault(of, [(0, 0.0, 0.0)] * len(slopes))
        for place, slope in enumerate(slopes):
            slope = max(-self.clip, min(self.clip, slope))
            count, first, second = state[place]
            count, first, second = count + 1, 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            state[place] = count, first, second
            step = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)) ** 0.5 + 1e-8)
            self.values[place] = max(self.least[place], self.values[place] - self.lr * step)


@checked_by(check_gradinit, ranges=GRADINIT, brief=brief_steps)
def gradinit(
    model: nn.Module,
    *,
    images: Tensor,
    labels: Tensor,
    streams: Streams,
    weight: Callable[..., None],
    update: str,
    steps: int,
    lr: float,
    eta: float,
    gamma: float,
    min_scale: float,
    clip: float,
    batch_size: int,
) -> Iterator[Step]:
    """Fill the weights by `weight`, then scale each tensor by a factor that makes the loss after one training
    step as small as it gets while the gradient's norm stays within `gamma`.

    The step is theta - eta g / |g| (2-norm) for `update` sgd, theta - eta sign(g) for adam, where `gamma` bounds
    the 1-norm. Where the norm is too large, the factors descend on it, else on the loss of the step, on a batch
    half of which is new. Factors move by Adam at `lr`, their slopes clipped to +-`clip`; those of weights and
    norms stay above `min_scale`. A tensor of zeros stays. Yields `loss` after the step, wherever it was looked
    at, and `gradient_norm`.
    """
    fill_weights(model, weight=weight, streams=streams, in_shape=images.shape[1:])
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    least = [0.0 if name.rpartition(".")[2] == "bias" else min_scale for name in named]
    scales = Scales([1.0] * len(named), lr=lr, clip=clip, least=least)
    generator = streams.generator("init", "gradinit")
    for number in range(1, steps + 1):
        with by_the_batch(model):
            index = torch.randint(len(labels), (batch_size + batch_size // 2,), generator=generator).to(labels.device)
            loss, norm = descend(
                model, start, scales, images[index], labels[index], update=update, eta=eta, gamma=gamma
            )
        if number % REPORTED == 0 or number == steps:
            yield Step(number, {"gradient_norm": norm} | ({} if loss is None else {"loss": loss}))
    with torch.no_grad():
        for value, (name, parameter) in zip(scales.values, named.items(), strict=True):
            parameter.copy_(value * start[name])


def descend(
    model: nn.Module,
    start: dict[str, Tensor],
    scales: Scales,
    images: Tensor,
    labels: Tensor,
    *,
    update: str,
    eta: float,
    gamma: float,
) -> tuple[float | None, float]:
    """One step of the scales; the loss after the training step (None where the norm was too large) and the norm.

    The training step sees the first two thirds of the images, the loss after it the last two thirds."""
    third = len(labels) // 3
    factors = [torch.tensor(value, device=images.device, requires_grad=True) for value in scales.values]
    theta = {name: factor * start[name] for factor, name in zip(factors, start, strict=True)}
    before = F.cross_entropy(functional_call(model, theta, images[: 2 * third]), labels[: 2 * third])
    gradients = differentiable(before, list(theta.values()))
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    norm = flat.norm() if update == "sgd" else flat.abs().sum()
    if norm.item() > gamma:
        scales.descend(torch.stack(slopes(norm, factors)).tolist(), of="constraint")
        return None, norm.item()
    moved = {
        name: value - eta * (gradient.sign() if update == "adam" else (gradient / norm).detach())
        for (name, value), gradient in zip(theta.items(), gradients, strict=True)
    }
    after = F.cross_entropy(functional_call(model, moved, images[third:]), labels[third:])
    scales.descend(torch.stack(slopes(after / eta, factors)).tolist(), of="objective")
    return after.item(), norm.item()


def differentiable(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of `value`, through which one can differentiate again; 0 for inputs it does not depend on."""
    return torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True, materialize_grads=True)


def energy_of(gradients: Sequence[Tensor]) -> Tensor:
    """|g|^2 / 2, whose gradient is H g."""
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum() / 2


def slopes(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of `value`, a plain number then; 0 for inputs it does not depend on."""
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
