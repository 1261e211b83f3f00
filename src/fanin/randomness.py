"""Separate random streams: one generator per purpose and name, so that no choice disturbs another.

Changing the initializer must not change the data order, and adding a layer must not change the weights of
the others: every stream is keyed by (study seed, replicate, purpose, name) and by nothing else. Variants of
one replicate therefore share split, batch order and dropout masks (common random numbers), which makes their
comparison paired.
"""

import hashlib
from dataclasses import dataclass

import torch


def derive(seed: int, replicate: int, purpose: str, name: str = "") -> int:
    """A 63-bit seed for the stream `purpose`/`name`: the head of SHA-256 over the key."""
    key = f"{seed}/{replicate}/{purpose}/{name}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Streams:
    """The random streams of one run. Purposes in use: init, order, dropout, augmentation, split, global."""

    seed: int
    replicate: int

    def derive(self, purpose: str, name: str = "") -> int:
        return derive(self.seed, self.replicate, purpose, name)

    def generator(self, purpose: str, name: str = "", device: str | torch.device = "cpu") -> torch.Generator:
        """A fresh generator at the start of the stream; asking twice gives the same draws."""
        return torch.Generator(device=device).manual_seed(self.derive(purpose, name))
