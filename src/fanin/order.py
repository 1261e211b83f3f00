"""Which images each step of an epoch sees: a function of the epoch and of nothing else."""

import torch
from torch import Tensor

from fanin.randomness import Streams


def batch_sizes(count: int, *, batch_size: int, batch: str = "mini") -> list[int]:
    """How many images each step of an epoch sees: its length is the number of steps.

    Every image is used. What would be a last batch of one joins the batch before it: batch norm has nothing
    to normalise a single image by, and all variants must share their batches.
    """
    if batch == "full":
        return [count]
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if rest == 1 and full:
        sizes[-2:] = [batch_size + 1]
    return sizes


def draw_order(index: Tensor, *, streams: Streams, epoch: int) -> Tensor:
    """`index` shuffled by the epoch's own stream, so that a resumed run needs no generator state."""
    order = torch.randperm(len(index), generator=streams.generator("order", f"epoch {epoch}"))
    return index[order.to(index.device)]
