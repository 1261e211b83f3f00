"""Regularizers that act in the training step: penalties, smoothed labels, projections, clipping, stopping.

Normalisation, dropout and stochastic depth are layers and belong to the model (`layers` picks their settings);
what is done to the images is in augmentation.py, and the average of the weights in averaging.py. Decoupled weight
decay rides on the optimizer's groups. All values pass through `build`, to be checked together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.errors import ConfigError, require, unknown
from fanin.ranges import check, number, optional, whole

NORMS = ("none", "batch", "noisy_batch", "layer", "group")
RANGES = {
    "groups": whole(1),
    "norm_noise": number(least=0),
    "dropout": number(least=0, below=1),
    "stochastic_depth": number(least=0, below=1),
    "l1": number(least=0),
    "l2": number(least=0),
    "weight_decay": number(least=0),
    "label_smoothing": number(least=0, below=1),
    "max_norm": optional(number(above=0)),
    "gradient_clipping": optional(number(above=0)),
    "input_dropout": number(least=0, below=1),
    "input_noise": number(least=0),
    "shift": whole(0),
    "rotate": number(least=0, most=180),
    "mixup": number(least=0),
    "weight_averaging": number(least=0, below=1),
    "patience": optional(whole(1)),
}
DECAY = "decoupled_weight_decay"  # its key in an optimizer's group


@dataclass(frozen=True)
class Regularizer:
    """What the training loop applies; the neutral value of each field (0 or None) switches it off."""

    l1: float
    l2: float
    label_smoothing: float
    max_norm: float | None
    gradient_clipping: float | None
    input_dropout: float
    input_noise: float
    shift: int
    rotate: float
    mixup: float
    weight_averaging: float
    patience: int | None


NONE = Regularizer(
    l1=0.0,
    l2=0.0,
    label_smoothing=0.0,
    max_norm=None,
    gradient_clipping=None,
    input_dropout=0.0,
    input_noise=0.0,
    shift=0,
    rotate=0.0,
    mixup=0.0,
    weight_averaging=0.0,
    patience=None,
)


def build(*, applied: Mapping[str, str], norm: str, **settings: Any) -> Regularizer:
    """Check all `regularization` keys of a config, and keep those that the training loop needs.

    Raises ConfigError for a value out of range, for two choices that set the same key (`applied` maps each
    choice made to the key it sets), of which only the last would take effect, and for two that are one thing.
    """
    _check_conflicts(applied)
    if norm not in NORMS:
        raise unknown("regularization.norm", norm, NORMS)
    check(settings, RANGES, group="regularization")
    if settings["l2"] and settings["weight_decay"]:
        rule = "l2 and weight_decay are two forms of one thing: choose one, and set the other to 0"
        raise ConfigError(f"regularization: {rule}, got {settings['l2']!r} and {settings['weight_decay']!r}")
    return Regularizer(**{field.name: settings[field.name] for field in fields(Regularizer)})


def layers(*, norm: str, groups: int, norm_noise: float, dropout: float, stochastic_depth: float, **_: Any) -> Any:
    """The keys of a config's `regularization` that are layers of the model, for `models.build`; `groups` and
    `norm_noise` are neutral where the norm is not theirs."""
    return {
        "norm": norm,
        "groups": groups if norm == "group" else 1,
        "norm_noise": norm_noise if norm == "noisy_batch" else 0.0,
        "dropout": dropout,
        "stochastic_depth": stochastic_depth,
    }


def check_images(regularizer: Regularizer, *, shape: Iterable[int]) -> None:
    """Raise a ConfigError for a shift that would leave nothing of images of `shape` (C, H, W)."""
    _, height, width = shape
    rule = f"must leave something of images of {height}x{width}"
    require(regularizer.shift < min(height, width), "regularization.shift", rule, regularizer.shift)


def _check_conflicts(applied: Mapping[str, str]) -> None:
    choices = defaultdict(list)
    for name, key in applied.items():
        choices[key].append(name)
    for key, names in choices.items():
        if len(names) > 1:
            both = " and ".join(names)
            raise ConfigError(f"regularization: {both} both set regularization.{key}; choose one of them")


def weights(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are penalised and bounded: matrices and filters, not biases, norm scales or slopes.

    A bias adds no capacity worth shrinking, and pulling the scale of a norm layer to zero switches it off
    (Goodfellow, Bengio & Courville 2016, section 7.1).
    """
    return [parameter for parameter in parameters if parameter.ndim >= 2 and parameter.requires_grad]


def l1_penalty(penalised: list[nn.Parameter], *, strength: float) -> Tensor:
    """strength * sum |w|; its gradient is strength * sign(w), and 0 at 0."""
    return strength * torch.stack([weight.abs().sum() for weight in penalised]).sum()


@torch.no_grad()
def add_l2(penalised: list[nn.Parameter], *, strength: float) -> Tensor:
    """Add strength * w to each weight's gradient; returns the penalty that has it, strength / 2 * sum w^2."""
    for weight in penalised:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    gradients = [weight.grad for weight in penalised if weight.grad is not None]
    torch._foreach_add_(gradients, penalised, alpha=strength)  # type: ignore[arg-type]
    return strength / 2 * torch.stack([weight.square().sum() for weight in penalised]).sum()


@torch.no_grad()
def decay(optimizer: Optimizer) -> None:
    """Shrink the weights of a group by its learning rate times its decay, apart from the gradient's step.

    Loshchilov & Hutter 2019. To be called between the gradient and the step, where torch's AdamW does it.
    """
    for group in optimizer.param_groups:
        if group.get(DECAY):
            torch._foreach_mul_(group["params"], 1 - float(group["lr"]) * group[DECAY])


def decays(optimizer: Optimizer) -> bool:
    return any(group.get(DECAY) for group in optimizer.param_groups)


@torch.no_grad()
def project_max_norm(bounded: list[nn.Parameter], *, max_norm: float) -> None:
    """Scale each unit's incoming weights (a row, a filter) back to 2-norm `max_norm` where they exceed it.

    Srivastava et al. 2014, section 5.1; applied after the step, in place.
    """
    for weight in bounded:
        weight.renorm_(p=2, dim=0, maxnorm=max_norm)
