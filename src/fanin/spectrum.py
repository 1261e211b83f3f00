"""The largest singular value of a matrix by the Lanczos process: accurate, stateless, no random draw.

Power iteration needs hundreds of steps on a random matrix, whose largest singular values lie close together;
Lanczos needs about the square root of that (Golub & Van Loan 2013, chapter 10). Started each time from the
same vector, it gives the same number for the same matrix, whatever was measured before.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 40  # at most: relative error about 1e-6 up to Gaussian 1024 x 1024 matrices, the hardest: dense at the top
FIRST, EVERY = 8, 2  # steps after which the process may end,
SETTLED = 1e-5  # when the eigenvalue has grown by no more since the last look: it is 1e-6 from its limit then
SMALL = 32  # rows or columns up to which all eigenvalues cost less than the process

LARGE = 1e30  # above it, what a product with a unit vector gives may be infinite in float32
EPSILON = float(np.finfo(np.float32).eps)
Array = NDArray[Any]


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of `matrix` (rows, columns); NaN if an entry is not finite."""
    return finish(compact(matrix))


def compact(matrix: Tensor) -> Tensor:
    """What `finish` needs on the host: a matrix that is there already, and of an accelerator's the Gram matrix."""
    return matrix.detach() if matrix.device.type == "cpu" else gram(matrix)


def gram(matrix: Tensor) -> Tensor:
    """The smaller Gram matrix of `matrix` (rows, columns), flat, and last the largest absolute entry, by which the
    matrix is divided first so that no product overflows or vanishes. Stays on the device, no wait."""
    rows, columns = matrix.shape
    scale = matrix.abs().amax().float()
    short = matrix.float() / torch.where(scale > 0, scale, 1.0)
    product = short @ short.T if rows <= columns else short.T @ short
    return torch.cat([product.flatten(), scale.view(1)])


def finish(found: Tensor) -> float:
    """The largest singular value from what `compact` or `gram` returned, now on the CPU: tens of products with a
    vector are a few hundred microseconds here, and half a millisecond of launches alone on a GPU."""
    values = found.float().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return _of_matrix(values) if values.ndim == 2 else _of_gram(values)


def _of_gram(values: Array) -> float:
    if not np.isfinite(values).all():
        return math.nan
    size = math.isqrt(len(values) - 1)
    square = values[:-1].reshape(size, size)
    top = _all(square) if size <= SMALL else _largest(lambda vector: square @ vector, size=size)
    return float(values[-1]) * math.sqrt(max(top, 0.0))


def _of_matrix(matrix: Array) -> float:
    """Without the Gram matrix: it costs as much as a hundred products with a vector."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    size = len(wide)
    image = _start(size) @ wide
    scale = float(np.abs(image).max())  # of the order of the matrix; it sees each entry
    if not scale <= LARGE:
        return _of_large(wide)
    if scale == 0:
        return 0.0
    if size <= SMALL:
        short = wide.astype(np.float64) / scale
        return scale * math.sqrt(max(_all(short @ short.T), 0.0))
    return scale * math.sqrt(max(_largest(lambda vector: _square(wide, vector, scale=scale), size=size), 0.0))


def _of_large(wide: Array) -> float:
    largest = float(np.abs(wide).max())
    return largest * _of_matrix(wide / np.float32(largest)) if math.isfinite(largest) else math.nan


def _square(wide: Array, vector: Array, *, scale: float) -> Array:
    """(W / scale) (W / scale)^T v, which neither overflows nor vanishes."""
    image = vector @ wide
    image /= scale
    result: Array = wide @ image
    result /= scale
    return result


def _all(square: Array) -> float:
    return float(np.linalg.eigvalsh(square.astype(np.float64))[-1])


def _largest(product: Callable[[Array], Array], *, size: int) -> float:
    """The largest eigenvalue of a positive semidefinite matrix, which `product` multiplies a vector by. Where the
    process breaks down (low rank: the Krylov space is exhausted) its eigenvalues are exact."""
    vector: Array = _start(size)
    previous, beyond, total, largest = np.zeros_like(vector), 0.0, 0.0, 0.0
    steps = min(STEPS, size)
    reduced = np.zeros((steps, steps))  # tridiagonal; its lower triangle is all that is looked at
    for number in range(steps):
        residual = product(vector)
        residual -= beyond * previous
        reduced[number, number] = diagonal = float(residual @ vector)
        total += diagonal
        residual -= diagonal * vector
        beyond = math.sqrt(residual @ residual)
        ends = beyond <= EPSILON * total or number == steps - 1
        if ends or (number >= FIRST - 1 and (number - FIRST + 1) % EVERY == 0):
            before, largest = largest, float(np.linalg.eigvalsh(reduced[: number + 1, : number + 1])[-1])
            if ends or largest - before <= SETTLED * largest:
                break
        reduced[number + 1, number] = beyond
        residual /= beyond
        vector, previous = residual, vector
    return largest


@lru_cache
def _start(length: int) -> NDArray[np.float32]:
    """A fixed unit vector with no symmetry that a weight matrix could share; its own generator draws it."""
    vector = torch.randn(length, generator=torch.Generator().manual_seed(0))
    return np.asarray(vector / vector.norm())
