"""Looking at a model without touching its training: no random draw, no buffer updated, no mode changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean cross-entropy in nats; `accuracy`: a fraction; `predicted`: int64 (N,) on the device."""

    loss: float
    accuracy: float
    predicted: Tensor


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    index: Tensor | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> Evaluation:
    """Loss and accuracy over every image (or those at `index`), in eval mode and float32.

    Losses are summed over the images, so a short last batch weighs what it holds.
    """
    device = images.device
    if index is not None:
        labels = labels.index_select(0, index)
    loss = torch.zeros((), dtype=wide_dtype(device), device=device)
    predicted = []
    with observing(model, device=device), torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            batch = images[rows] if index is None else images.index_select(0, index[rows])
            logits = model(batch)
            loss += F.cross_entropy(logits, labels[rows], reduction="sum")
            predicted.append(logits.argmax(1))
    guesses = torch.cat(predicted).clone()
    hits = (guesses == labels).sum()
    total, right = torch.stack([loss, hits.to(loss.dtype)]).tolist()  # the only wait for the device
    return Evaluation(loss=total / len(labels), accuracy=right / len(labels), predicted=guesses)


@contextmanager
def observing(model: nn.Module, *, device: torch.device) -> Iterator[None]:
    """Put `model` into eval mode; afterwards all modules' modes and the global random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    random_state = global_random_state(device)
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_global_random_state(random_state, device)


def global_random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators: the CPU's, and the accelerator's where there is one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["device"] = torch.mps.get_rng_state()
    return states


def set_global_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["device"])


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type to accumulate in: float64, except on Apple's GPU, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64
