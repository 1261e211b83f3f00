"""Layers that draw random numbers while training, each from a stream of its own.

Their draws are the same whatever else draws random numbers, so that variants of one replicate share them; and
where each stream stands goes into a checkpoint.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fanin.randomness import Streams


class Noise(nn.Module):
    """A layer whose `generator` is that of the stream `purpose`/<its path in the model>; see seed_noise."""

    purpose: ClassVar[str]
    generator: torch.Generator | None = None  # None: torch's global stream


def seed_noise(model: nn.Module, streams: Streams) -> None:
    """Start the stream of every Noise in `model`, on the model's device."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    for path, module in noises(model).items():
        module.generator = streams.generator(module.purpose, path, device)


def noise_state(model: nn.Module) -> dict[str, Tensor]:
    """Where each seeded stream stands, by module path, as CPU byte tensors."""
    generators = {path: module.generator for path, module in noises(model).items()}
    return {path: generator.get_state() for path, generator in generators.items() if generator is not None}


def load_noise_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the streams of a model back to where they stood when `noise_state` was taken from one like it."""
    modules = noises(model)
    assert state.keys() == noise_state(model).keys(), "seed_noise comes first, and on the same architecture"
    for path, position in state.items():
        generator = modules[path].generator
        assert generator is not None
        generator.set_state(position.cpu())


def noises(model: nn.Module) -> dict[str, Noise]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Noise)}
