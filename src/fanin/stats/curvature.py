"""Curvature and noise of a loss: its largest Hessian eigenvalue, MetaInit's gradient quotient, the noise scale."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 20  # of power iteration: 1 to 5 % below the eigenvalue where the next one is close
EPSILON = 1e-5  # of the gradient quotient (Dauphin and Schoenholz 2019)
CHUNKS = 8  # smaller batches, whose gradients' scatter shows the noise

Product = Callable[[Tensor], Tensor]


def curvature(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """curvature/sharpness, curvature/gradient_quotient and curvature/noise_scale (in images) of the mean cross-entropy,
    in nats, of images (N, ...) with their labels (N,), by all trained parameters, in the mode the model is in."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        loss = F.cross_entropy(model.forward(images), labels)
        gradient, product = hessian(loss, parameters)
        found = {
            "curvature/sharpness": sharpness(product, like=gradient),
            "curvature/gradient_quotient": gradient_quotient(gradient, product(gradient)),
        }
        parts = zip(images.chunk(CHUNKS), labels.chunk(CHUNKS), strict=True)
        losses = [F.cross_entropy(model.forward(x), y) for x, y in parts if len(x) == -(-len(images) // CHUNKS)]
        gradients = torch.stack([_flat(one, parameters) for one in losses])
        found["curvature/noise_scale"] = noise_scale(gradients, size=-(-len(images) // CHUNKS))
    return found


def hessian(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Product]:
    """The gradient, flat, and the function v -> H v (Pearlmutter 1994)."""
    gradient = _flat(loss, parameters, differentiable=True)

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(vector)  # a linear loss
        return _flat(gradient @ vector.detach(), parameters)

    return gradient.detach(), product


def sharpness(product: Product, *, like: Tensor, steps: int = STEPS) -> float:
    """The Hessian's eigenvalue of the largest size, by power iteration from a fixed vector of its own stream.

    Gradient descent is stable while it is below 2 / lr (Cohen et al. 2021).
    """
    start = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    vector, value = start / start.norm(), torch.zeros((), device=like.device)
    for _ in range(steps):
        image = product(vector)
        value, size = vector @ image, image.norm()
        vector = image / torch.where(size > 0, size, 1.0)
    return float(value)


def gradient_quotient(gradient: Tensor, image: Tensor) -> float:
    """mean |(g - H g) / g - 1| = mean |H g / g|: by how much a step of size 1 changes the gradient. `image`: H g."""
    return float((image / (gradient + torch.where(gradient >= 0, EPSILON, -EPSILON))).abs().mean())


def noise_scale(gradients: Tensor, *, size: int) -> float:
    """tr(covariance) / |gradient|^2, from gradients (k, parameters) of k batches of `size` images: the batch size
    around which larger ones stop paying (McCandlish et al. 2018, appendix A). NaN where noise drowns the gradient."""
    small, large = gradients.square().sum(1).mean(), gradients.mean(0).square().sum()
    count = size * len(gradients)
    power = (count * large - size * small) / (count - size)
    noise = (small - large) / (1 / size - 1 / count)
    return float(noise / power) if power > 0 else float("nan")


def _flat(loss: Tensor, parameters: Sequence[Tensor], *, differentiable: bool = False) -> Tensor:
    found = torch.autograd.grad(
        loss, list(parameters), create_graph=differentiable, retain_graph=True, allow_unused=True
    )
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
