"""Dropout with random streams of its own: its masks are the same whatever else draws random numbers."""

import torch
from torch import Tensor, nn

from fanin.errors import require
from fanin.randomness import Streams


class Dropout(nn.Module):
    """Zeroes each unit with probability `p` while training and scales the others by 1 / (1 - p).

    The expected output thus is the input, which is the output of evaluation (Srivastava et al. 2014).
    """

    def __init__(self, p: float):
        super().__init__()
        check_dropout(p)
        self.p = p
        self.generator: torch.Generator | None = None  # None: torch's global stream; see seed_dropout

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        # Comparing uniform numbers is four times as fast on a CPU as torch's own Bernoulli draw. They are
        # float32 under autocast, too: the 8 bits of a bfloat16 would round the probability.
        mask = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=torch.float32)
        return x * mask.lt_(keep).mul_(1 / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def check_dropout(p: float) -> None:
    is_number = isinstance(p, int | float) and not isinstance(p, bool)
    require(is_number and 0 <= p < 1, "regularization.dropout", "must be a number in [0, 1)", p)


def seed_dropout(model: nn.Module, streams: Streams) -> None:
    """Start the stream dropout/<module path> in every Dropout of `model`, on the model's device."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    for path, module in dropouts(model).items():
        module.generator = streams.generator("dropout", path, device)


def dropout_state(model: nn.Module) -> dict[str, Tensor]:
    """Where each seeded stream stands, by module path, as CPU byte tensors."""
    generators = {path: module.generator for path, module in dropouts(model).items()}
    return {path: generator.get_state() for path, generator in generators.items() if generator is not None}


def load_dropout_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the streams of a model back to where they stood when `dropout_state` was taken from one like it."""
    modules = dropouts(model)
    assert state.keys() == dropout_state(model).keys(), "seed_dropout comes first, and on the same architecture"
    for path, position in state.items():
        generator = modules[path].generator
        assert generator is not None
        generator.set_state(position.cpu())


def dropouts(model: nn.Module) -> dict[str, Dropout]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Dropout)}
