"""An exponential moving average of the weights: what is evaluated and saved, while others are trained.

a <- d a + (1 - d) w after every step (Polyak & Juditsky 1992 averaged uniformly). The decay d starts small,
min(decay, (1 + t) / (10 + t)) after step t, or a short run would remember how it was initialized. Buffers that are
numbers, such as the means of batch norm, are averaged like weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps `state`, the average of the model's state dict, in place; an empty one starts as a copy of it.

    `steps`: how many updates it has seen, as when a run goes on.
    """

    def __init__(self, model: nn.Module, *, decay: float, state: dict[str, Tensor], steps: int):
        self.model, self.decay, self.state, self.steps = model, decay, state, steps
        live = model.state_dict()  # the model's own tensors, not copies
        for key, value in live.items():
            state[key] = state[key].to(value.device) if key in state else value.detach().clone()
        numbers = [key for key, value in live.items() if value.is_floating_point()]
        self._live = [live[key] for key in numbers]
        self._averages = [state[key] for key in numbers]
        self._counts = [(state[key], live[key]) for key in live if key not in numbers]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._averages, self._live, 1 - decay)
        for average, count in self._counts:
            average.copy_(count)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights; afterwards its own again, bit for bit."""
        own = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.state)
        try:
            yield
        finally:
            self.model.load_state_dict(own)
