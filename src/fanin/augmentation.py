"""What training does to its images: rotation, shift, mixup, noise, dropout of pixels, in this order.

Whole batches at once, on the device, and for nothing but training: evaluation and statistics see the images as
they are. Every draw is a function of the replicate and the epoch, each kind from the stream
augmentation/<kind> epoch <n>: one kind does not change another's draws, and a resumed run needs no state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import radians

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fanin.randomness import Streams
from fanin.regularizers import Regularizer

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mixture:
    """Image i is `share` of itself and 1 - share of image `partners[i]`; 1/2 <= share <= 1."""

    share: float
    partners: Tensor


class Augmentation:
    """One epoch's augmentation: call it on each batch of images (N, C, H, W) in turn."""

    def __init__(self, settings: Regularizer, *, streams: Streams, epoch: int, device: torch.device):
        def draws(kind: str, where: torch.device | str = "cpu") -> torch.Generator:
            return streams.generator("augmentation", f"{kind} epoch {epoch}", where)

        self.moves: list[Step] = []
        if settings.rotate:
            self.moves.append(partial(rotate, most=settings.rotate, generator=draws("rotate")))
        if settings.shift:
            self.moves.append(partial(shift, most=settings.shift, generator=draws("shift")))
        self.alpha = settings.mixup
        self.mixing = np.random.default_rng(streams.derive("augmentation", f"mixup epoch {epoch}"))
        self.spoils: list[Step] = []
        if settings.input_noise:
            noise = partial(add_noise, std=settings.input_noise, generator=draws("input_noise", device))
            self.spoils.append(noise)
        if settings.input_dropout:
            drop = partial(drop_pixels, p=settings.input_dropout, generator=draws("input_dropout", device))
            self.spoils.append(drop)

    def __call__(self, images: Tensor) -> tuple[Tensor, Mixture | None]:
        mixture = None
        for move in self.moves:
            images = move(images)
        if self.alpha:
            mixture = draw_mixture(len(images), alpha=self.alpha, draws=self.mixing, device=images.device)
            images = mix(images, mixture)
        for spoil in self.spoils:
            images = spoil(images)
        return images, mixture


def draw_augmentation(
    settings: Regularizer, *, streams: Streams, epoch: int, device: torch.device
) -> Augmentation | None:
    """The epoch's augmentation; None if nothing is asked for."""
    kinds = settings.rotate, settings.shift, settings.mixup, settings.input_noise, settings.input_dropout
    return Augmentation(settings, streams=streams, epoch=epoch, device=device) if any(kinds) else None


def rotate(images: Tensor, *, most: float, generator: torch.Generator) -> Tensor:
    """Turn each image about its centre by an angle ~ U(-most, most) degrees, interpolating bilinearly.

    What comes in from outside repeats the edge: black where a digit's background is, whatever the pixels' scale.
    """
    height, width = images.shape[-2:]
    angle = radians(most) * (2 * torch.rand(len(images), generator=generator) - 1)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The grid's coordinates go from -1 to 1 along either side, so that a turn is one in pixels only after scaling.
    rows = torch.stack([cos, -sin * (height / width), none]), torch.stack([sin * (width / height), cos, none])
    grid = F.affine_grid(torch.stack(rows).movedim(-1, 0).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def shift(images: Tensor, *, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by -most..most whole pixels along both sides; the edge is repeated behind it."""
    count, _, height, width = images.shape
    down, right = torch.randint(-most, most + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) - down).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp_(0, width - 1)
    number = torch.arange(count, device=images.device)
    return images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def draw_mixture(count: int, *, alpha: float, draws: np.random.Generator, device: torch.device) -> Mixture:
    """A share ~ Beta(alpha, alpha) for the whole batch, and who is mixed with whom (Zhang et al. 2018).

    A share below 1/2 is turned round: i with its partner is that partner with i, and pairs come in both orders
    equally often. So a picture's own label is that of its larger part, by which the accuracy is counted.
    """
    share = float(draws.beta(alpha, alpha))
    partners = torch.from_numpy(draws.permutation(count)).to(device)
    return Mixture(max(share, 1 - share), partners)


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    return torch.lerp(images[mixture.partners], images, mixture.share)


def add_noise(images: Tensor, *, std: float, generator: torch.Generator) -> Tensor:
    """Add N(0, std^2) to each pixel, in units of the scaled data; to first order Tikhonov's penalty (Bishop 1995)."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + noise.mul_(std).to(images.dtype)


def drop_pixels(images: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Zero each pixel with probability p and scale the others by 1 / (1 - p) (Srivastava et al. 2014)."""
    kept = torch.rand(images.shape, generator=generator, device=images.device).lt_(1 - p)
    return images * kept.mul_(1 / (1 - p)).to(images.dtype)
