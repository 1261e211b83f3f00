"""Separate random streams: one generator per purpose and name, so that no choice disturbs another.

Changing the initializer must not change the data order, and adding a layer must not change the weights of
the others: every stream is keyed by (study seed, replicate, purpose, name) and by nothing else. Variants of
one replicate therefore share split, batch order and dropout masks (common random numbers), which makes their
comparison paired. A purpose can be given a replicate of its own, so that the noise of each can be told apart
(fanin.noise).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fanin.errors import require, unknown

SEEDS = ("split", "init", "order", "dropout")  # the purposes that `seeds` can set


def derive(seed: int, replicate: int, purpose: str, name: str = "") -> int:
    """A 63-bit seed for the stream `purpose`/`name`: the head of SHA-256 over the key."""
    key = f"{seed}/{replicate}/{purpose}/{name}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Streams:
    """The random streams of one run.

    Purposes in use: init, order, split, global, dropout, stochastic_depth, norm_noise, augmentation.

    seeds: purpose -> the replicate whose streams it uses, instead of the run's own (None: its own).
    """

    seed: int
    replicate: int
    seeds: Mapping[str, int | None] = field(default_factory=dict)

    def derive(self, purpose: str, name: str = "") -> int:
        own = self.seeds.get(purpose)
        return derive(self.seed, self.replicate if own is None else own, purpose, name)

    def generator(self, purpose: str, name: str = "", device: str | torch.device = "cpu") -> torch.Generator:
        """A fresh generator at the start of the stream; asking twice gives the same draws."""
        return torch.Generator(device=device).manual_seed(self.derive(purpose, name))


def check_seeds(seeds: Mapping[str, object]) -> None:
    """Raise a ConfigError for a purpose that `seeds` cannot set, or for what is no replicate."""
    for purpose, value in seeds.items():
        if purpose not in SEEDS:
            raise unknown("seeds", purpose, SEEDS)
        whole = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        require(whole, f"seeds.{purpose}", "must be null (the run's replicate) or a whole number >= 0", value)
