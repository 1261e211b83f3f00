"""From the device to the host, all in one transfer: for each of its own the device would be waited for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fanin.evaluation import wide_dtype


def to_host(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The tensors of one device, of any shapes and floating types, on the CPU; those that are there as they are."""
    if at_hand(groups[0][0]):
        return [list(group) for group in groups]
    packed = pack([tensor for group in groups for tensor in group]).cpu()
    found = iter(unpack(packed, [tensor for group in groups for tensor in group]))
    return [[next(found) for _ in group] for group in groups]


def at_hand(tensor: Tensor) -> bool:
    """Whether reading it needs no transfer."""
    return tensor.device.type == "cpu"


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers in a row, in the widest type of their device, which holds each of them exactly."""
    wide = wide_dtype(tensors[0].device)
    return torch.cat([tensor.detach().flatten().to(wide) for tensor in tensors])


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What was packed, in the shapes and types of `like`."""
    parts = packed.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)]
