"""Maximal update parametrization: the best learning rate of a narrow network is that of a wide one.

Yang and Hu (2021), Yang et al. (2022, "Tensor Programs V"). A network r times as wide as one of `base_width`
starts and learns so that in every layer the signal, and what one step changes of it, keep their size as r grows:

| weights                         | variance at the start | SGD's lr | Adam's lr |
| ------------------------------- | --------------------- | -------- | --------- |
| of the first layer; and vectors | gain^2 / fan_in       | lr r     | lr        |
| of hidden layers                | gain^2 / fan_in       | lr       | lr / r    |
| of the last layer, the readout  | gain^2 / (fan_in r)   | lr / r   | lr / r    |

where vectors are biases and scales of one entry a unit; the readout's bias keeps lr. This is the paper's table 3.
Its table 8, which Microsoft's `mup` follows, multiplies the readout's output by 1 / r instead, starts its weights
at r times the std and gives them r^2 (SGD) or r (Adam) times the lr: the same function at every step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.errors import ConfigError, require, unknown
from fanin.initializers.closed_form import fans, fill, require_positive, standard_normal
from fanin.initializers.roles import Layer
from fanin.ranges import whole

# A learning rate is multiplied by r to the power of:
STEPS_LIKE_THE_GRADIENT = {"vector": 1, "matrix": 0, "readout": -1, "fixed": 0}
STEPS_WHATEVER_ITS_SIZE = {"vector": 0, "matrix": -1, "readout": -1, "fixed": 0}
RULES: dict[type[Optimizer], dict[str, int]] = {
    torch.optim.SGD: STEPS_LIKE_THE_GRADIENT,
    torch.optim.Adam: STEPS_WHATEVER_ITS_SIZE,
    torch.optim.AdamW: STEPS_WHATEVER_ITS_SIZE,
    torch.optim.Adamax: STEPS_WHATEVER_ITS_SIZE,
    torch.optim.NAdam: STEPS_WHATEVER_ITS_SIZE,
    torch.optim.RMSprop: STEPS_WHATEVER_ITS_SIZE,
    torch.optim.Adagrad: STEPS_WHATEVER_ITS_SIZE,
}
UNRULED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "lbfgs has one learning rate for all layers",
    torch.optim.Rprop: "rprop's steps forget the learning rate that they start from",
    torch.optim.Adadelta: "adadelta's eps is not small beside muP's gradients, which shrink as the width grows",
    torch.optim.ASGD: "asgd's lr also sets how fast it decays and averages",
}


@dataclass(frozen=True)
class Mup:
    """An initializer that also says how each parameter's learning rate follows from the optimizer's.

    The width of a network is that of its first layer; all its layers are taken to widen with it.
    """

    base_width: int
    gain: float
    readout: str  # normal | zeros, which makes all logits 0 at any width

    def __post_init__(self) -> None:
        rule = f"{whole(1).rule}, the width of the first layer for which the learning rate was chosen"
        require(whole(1).holds(self.base_width), "initializer.base_width", rule, self.base_width)
        require_positive("gain", self.gain)
        if self.readout not in ("normal", "zeros"):
            raise unknown("initializer.readout", self.readout, ["normal", "zeros"])

    def __call__(self, weight: Tensor, *, generator: torch.Generator, layer: Layer) -> None:
        if layer.count == 1:
            raise ConfigError("initializer: mup scales with the width of hidden layers, and this model has none")
        std = self.gain / sqrt(fans(weight).fan_in)
        if layer.last:
            std *= sqrt(self.base_width / layer.width) if self.readout == "normal" else 0.0
        fill(weight, std * standard_normal(weight, generator))

    def learning_rates(
        self, model: nn.Module, layers: Mapping[str, Layer], optimizer: Callable[..., Optimizer]
    ) -> dict[nn.Parameter, float]:
        """The factor of each parameter's learning rate. Raises ConfigError for an optimizer without a rule."""
        powers = rule(optimizer)
        kinds = {p: kind(path, module, p, layers) for path, module in model.named_modules() for p in own(module)}
        ratio = next(iter(layers.values())).width / self.base_width
        return {parameter: ratio ** powers[name] for parameter, name in kinds.items()}


def rule(optimizer: Callable[..., Optimizer]) -> dict[str, int]:
    """By kind of parameter, the power of the width ratio that multiplies its learning rate (Yang et al. 2022, table 3).
    Raises ConfigError for an optimizer without a rule."""
    classes = optimizer.__mro__ if isinstance(optimizer, type) else ()
    found = next((RULES[c] for c in classes if c in RULES), None)
    if found is None:
        reason = next((UNRULED[c] for c in classes if c in UNRULED), f"there is no rule for {optimizer.__name__}")
        some = "sgd, momentum, nesterov, adam, adamw, adamax, rmsprop, adagrad"
        raise ConfigError(
            f"optimizer: initializer=mup sets a learning rate for each layer, and {reason}; take one of: {some}"
        )
    return found


def own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the module itself, not those of its parts."""
    return list(module.parameters(recurse=False))


def kind(path: str, module: nn.Module, parameter: nn.Parameter, layers: Mapping[str, Layer]) -> str:
    """How a parameter's shape grows with the width: as a vector, a matrix, a matrix to the logits, or not at all."""
    layer = layers.get(path)
    if layer is not None and parameter is module.weight:
        depthwise = getattr(module, "groups", 1) > 1 and parameter.shape[1] == 1
        return "readout" if layer.last else "vector" if layer.first or depthwise else "matrix"
    if parameter.dim() > 1:
        raise ConfigError(f"initializer: mup knows no rule for {type(module).__name__} ({path}); take another model")
    return "fixed" if parameter.numel() == 1 or (layer is not None and layer.last) else "vector"
