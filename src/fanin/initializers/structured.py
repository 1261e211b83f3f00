"""Initializers that are more than independent draws: orthogonal, identical, sparse, zero in the last layer.

In a convolution the identity, and what is like it, stands at the kernel's centre and the other taps are 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fanin.errors import ConfigError, require
from fanin.initializers.closed_form import fans, fill, require_positive, standard_normal
from fanin.initializers.roles import Layer
from fanin.ranges import whole
from fanin.signatures import asked


def orthogonal(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W as a matrix (units out, fan_in) is gain times one with orthonormal rows, or columns where it is tall.

    Signs that make R's diagonal positive make the Q of Z = QR uniform over all of these (Mezzadri 2007; as an
    initializer Saxe et al. 2013).
    """
    require_positive("gain", gain)
    fill(weight, gain * orthonormal(standard_normal(weight, generator).flatten(1)).reshape(weight.shape))


def orthonormal(z: Tensor) -> Tensor:
    """The matrix of orthonormal rows, or columns where it is tall, that z of shape (m, n) determines, in float64."""
    # Because the last bits of a float32 factorisation depend on the number of threads.
    z = z.double()
    wide = z.shape[0] < z.shape[1]
    q, r = torch.linalg.qr(z.T if wide else z)
    q = q * r.diagonal().sign()
    return q.T if wide else q


def delta_orthogonal(weight: Tensor, *, generator: torch.Generator, layer: Layer, gain: float) -> None:
    """A convolution that is orthogonal at every pixel: `gain` times orthonormal columns at the kernel's centre.

    It keeps the length of the image, so that tanh networks of 10,000 layers learn (Xiao et al. 2018). The gain
    multiplies once; ports of the authors' code that multiply by sqrt(gain) took over the meaning of an old
    TensorFlow. Linear layers are orthogonal.
    """
    require_positive("gain", gain)
    units_out, units_in, *kernel = weight.shape
    if kernel and units_out < units_in:
        raise ConfigError(
            "initializer: delta_orthogonal needs at least as many channels out of a convolution as into it, and "
            f"{layer.path} has {units_out} out, {units_in} in; {units_in} or more would work, or initializer=orthogonal"
        )
    z = standard_normal(weight, generator)
    values = torch.zeros_like(z)
    fill(centre(values), gain * orthonormal(centre(z)))
    fill(weight, values)


def identity(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """gain times the identity where a layer is as wide as its input; one that changes the width is orthogonal.

    For deep linear and rectified networks (Le et al. 2015; Hardt and Ma 2017).
    """
    require_positive("gain", gain)
    if weight.shape[0] == weight.shape[1]:
        fill(weight, gain * eye(weight))
    else:
        orthogonal(weight, generator=generator, gain=gain)


def partial_identity(weight: Tensor, *, layer: Layer) -> None:
    """W = I, cut off or filled up with zeros where the layer is not square: the baseline of Zhao et al. (2021).

    However wide the network grows, what training adds stays of a rank below that of the narrowest layer.
    """
    require_wide(weight, layer, "partial_identity")
    fill(weight, eye(weight))


def zero_hadamard(weight: Tensor, *, layer: Layer) -> None:
    """ZerO, algorithm 1 of Zhao et al. (2021), which draws nothing: the identity, but Hadamard where a layer widens.

    Of m units out and n < m in, W = I_(m,p) H_p I_(p,n) / sqrt(p) with p = 2^ceil(log2 m), scaled as in the
    authors' code: the first m rows and n columns of Hadamard's matrix, which break the symmetry that zeros would
    keep. Otherwise a partial identity.
    """
    require_wide(weight, layer, "zero_hadamard")
    units_out, units_in = weight.shape[:2]
    values = torch.zeros_like(weight)
    order = 1 << (units_out - 1).bit_length()
    if units_out > units_in:
        fill(centre(values), hadamard(units_out, units_in, device=weight.device) / order**0.5)
    else:
        values = eye(weight)
    fill(weight, values)


def sparse(weight: Tensor, *, generator: torch.Generator, layer: Layer, nonzeros: int, std: float) -> None:
    """Every unit has exactly `nonzeros` incoming weights, drawn from N(0, std^2), wherever they fall (Martens 2010).

    torch.nn.init.sparse_ counts them along the other axis, by input, so that units differ, and draws their places
    from the global random stream.
    """
    require_positive("std", std)
    require(whole(1).holds(nonzeros), "initializer.nonzeros", whole(1).rule, nonzeros)
    fan_in = fans(weight).fan_in
    rule = f"must be at most {fan_in}, the number of inputs of a unit of {layer.path}"
    require(nonzeros <= fan_in, "initializer.nonzeros", rule, nonzeros)
    z = standard_normal(weight, generator).flatten(1)
    order = torch.rand(z.shape, generator=generator, device=z.device)
    places = order.topk(nonzeros, dim=1).indices
    values = torch.zeros_like(z).scatter(1, places, std * z.gather(1, places))
    fill(weight, values.reshape(weight.shape))


def zero_last(weight: Tensor, *, generator: torch.Generator, layer: Layer, rest: Callable[..., None]) -> None:
    """W = 0 in the last layer, `rest` (an initializer of its own) before it.

    All logits are 0 and the loss is ln(classes); the last layer learns first, then the others hear of it
    (Zhang et al. 2019 begin so, and Yang et al. 2022 recommend it).
    """
    require(callable(rest), "initializer.rest", "must be an initializer of one weight, a mapping with _target_", rest)
    rule = "must be an initializer that sets no learning rates (mup has readout=zeros)"
    require(not hasattr(rest, "learning_rates"), "initializer.rest", rule, rest)
    if layer.last:
        fill(weight, torch.zeros_like(weight))
    else:
        rest(weight, **asked(rest, generator=generator, layer=layer))


def centre(weight: Tensor) -> Tensor:
    """The view (units out, units in) of a kernel's middle tap; of a linear layer's weight, all of it."""
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight


def eye(weight: Tensor) -> Tensor:
    """Ones on the diagonal of the centre, as torch.nn.init's eye_ and dirac_ set them."""
    values = torch.zeros_like(weight)
    centre(values).fill_diagonal_(1.0)
    return values


def hadamard(rows: int, columns: int, *, device: torch.device) -> Tensor:
    """The upper left part of Sylvester's matrix: -1 where the row and column numbers share an odd number of bits."""
    shared = torch.arange(rows, device=device)[:, None] & torch.arange(columns, device=device)
    odd = torch.zeros_like(shared)
    for bit in range(min(rows, columns).bit_length()):
        odd ^= (shared >> bit) & 1
    return (1 - 2 * odd).float()


def require_wide(weight: Tensor, layer: Layer, name: str) -> None:
    """Raise a ConfigError for a first layer of fewer units than inputs: it would look at some of them only."""
    units_out, units_in = weight.shape[:2]
    if layer.first and not layer.last and units_out < units_in:
        example = f", such as model.widths=[{units_in},256]" if weight.dim() == 2 else ""
        raise ConfigError(
            f"initializer: {name} would show the first {units_out} of {units_in} inputs to {layer.path} and hide the "
            f"others; a first layer of {units_in} units or more works{example}"
        )
