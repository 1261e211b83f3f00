"""Regularizers that act in the training step: penalties, smoothed labels, projections, clipping, stopping.

Normalisation and dropout are layers and belong to the model; weight decay belongs to the optimizer. Their
values pass through `build` only to be checked with the others.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fanin.errors import ConfigError, unknown
from fanin.ranges import check, number, optional, whole

NORMS = ("none", "batch", "layer")
RANGES = {
    "dropout": number(least=0, below=1),
    "weight_decay": number(least=0),
    "l1": number(least=0),
    "label_smoothing": number(least=0, below=1),
    "max_norm": optional(number(above=0)),
    "gradient_clipping": optional(number(above=0)),
    "patience": optional(whole(1)),
}


@dataclass(frozen=True)
class Regularizer:
    """What the training loop applies; the neutral value of each field (0 or None) switches it off."""

    l1: float
    label_smoothing: float
    max_norm: float | None
    gradient_clipping: float | None
    patience: int | None


NONE = Regularizer(l1=0.0, label_smoothing=0.0, max_norm=None, gradient_clipping=None, patience=None)


def build(
    *,
    applied: Mapping[str, str],
    norm: str,
    dropout: float,
    weight_decay: float,
    l1: float,
    label_smoothing: float,
    max_norm: float | None,
    gradient_clipping: float | None,
    patience: int | None,
) -> Regularizer:
    """Check the `regularization` keys of a config and keep those the training loop needs.

    Raises ConfigError for a value out of range, and for two choices that set the same key (`applied` maps
    each choice made to the key it sets), of which only the last would take effect.
    """
    _check_conflicts(applied)
    if norm not in NORMS:
        raise unknown("regularization.norm", norm, NORMS)
    values: dict[str, object] = {
        "dropout": dropout,
        "weight_decay": weight_decay,
        "l1": l1,
        "label_smoothing": label_smoothing,
    }
    limits = {"max_norm": max_norm, "gradient_clipping": gradient_clipping, "patience": patience}
    check(values | limits, RANGES, group="regularization")
    return Regularizer(
        l1=float(l1),
        label_smoothing=float(label_smoothing),
        max_norm=max_norm,
        gradient_clipping=gradient_clipping,
        patience=patience,
    )


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
def project_max_norm(bounded: list[nn.Parameter], *, max_norm: float) -> None:
    """Scale each unit's incoming weights (a row, a filter) back to 2-norm `max_norm` where they exceed it.

    Srivastava et al. 2014, section 5.1; applied after the step, in place.
    """
    for weight in bounded:
        weight.renorm_(p=2, dim=0, maxnorm=max_norm)
