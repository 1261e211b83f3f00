"""Initializers that are more than independent draws: orthogonal matrices."""

import torch
from torch import Tensor

from fanin.initializers.closed_form import fill, require_positive, standard_normal


def orthogonal(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W as a matrix (units out, fan_in) is gain times one with orthonormal rows, or columns where it is tall.

    Signs that make R's diagonal positive make the Q of Z = QR uniform over all of these (Mezzadri 2007; as an
    initializer Saxe et al. 2013).
    """
    require_positive("gain", gain)
    # In float64, because the last bits of a float32 factorisation depend on the number of threads.
    z = standard_normal(weight, generator).double().flatten(1)
    wide = z.shape[0] < z.shape[1]
    q, r = torch.linalg.qr(z.T if wide else z)
    q = q * r.diagonal().sign()
    fill(weight, gain * (q.T if wide else q).reshape(weight.shape))
