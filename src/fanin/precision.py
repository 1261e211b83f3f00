"""In which numbers training computes: torch's precision, and what it does with the smallest numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

PRECISIONS = ("fp32", "bf16", "tf32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16: products in bfloat16, weights in float32. Entered anew each pass: it caches the cast weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def numerics(precision: str, device: torch.device) -> Iterator[None]:
    """Global numeric modes for the time of one epoch.

    Denormals are flushed to zero: the averages that Adam keeps of a dead unit's gradient decay to denormal
    numbers and stay there, and its step then takes twice the time. On cuda, fp32 means IEEE and tf32 means
    TF32, for matrix products and convolutions alike (torch's own default mixes them).
    """
    places: tuple[Any, ...] = ()
    if device.type == "cuda":
        places = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    flushing = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
        for place, mode in zip(places, before, strict=True):
            place.fp32_precision = mode


def flushes_denormals() -> bool:
    """torch can set this mode but not tell it: a product below the smallest normal number shows it."""
    return (torch.full((1,), 1e-38) * 0.1).item() == 0
