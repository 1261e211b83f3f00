"""Training, validation and test images on the device, on one pixel scale.

`prepare` moves and scales whole arrays once per worker; `split` costs a permutation and is done per run, so
that replicates differ in their validation images without another copy of the data.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fanin.data.images import Dataset, Shape
from fanin.errors import ConfigError, require, unknown
from fanin.randomness import Streams
from fanin.ranges import is_whole

SCALES = ("unit", "standard", "none")


@dataclass(frozen=True)
class Prepared:
    """Scaled float32 images (N, C, H, W), int64 labels (N,), on the device; `images` is the training set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def shape(self) -> Shape:
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Split:
    """One run's data: `train` and `val` are disjoint int64 indices into `images`, all on one device."""

    images: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def split(prepared: Prepared, *, val: int, n_train: int | None, streams: Streams) -> Split:
    """Shuffle the training set; the first `val` images validate, the next `n_train` (None: the rest) train.

    The order comes from the stream "split" alone, so variants of a replicate share it, and the first k
    training images are the same ones for every `n_train` >= k.
    """
    count = len(prepared.labels)
    check_sizes(count, val=val, n_train=n_train)
    order = torch.randperm(count, generator=streams.generator("split")).to(prepared.images.device)
    end = count if n_train is None else val + n_train
    return Split(
        images=prepared.images,
        labels=prepared.labels,
        train=order[val:end],
        val=order[:val],
        test_images=prepared.test_images,
        test_labels=prepared.test_labels,
        classes=prepared.classes,
    )


def check_sizes(count: int, *, val: int, n_train: int | None) -> None:
    """Raise a ConfigError unless `val` and `n_train` images can be taken out of `count`."""
    require(is_whole(val, least=1), "data.val", "must be a positive whole number of validation images", val)
    require(val < count, "data.val", f"must leave some of the {count} training images to train on", val)
    if n_train is not None:
        rule = "must be null (all of them) or a positive whole number of training images"
        require(is_whole(n_train, least=1), "data.n_train", rule, n_train)
        rule = f"must be at most {count - val} ({count} training images less {val} for validation)"
        require(n_train <= count - val, "data.n_train", rule, n_train)


def prepare(dataset: Dataset, *, scale: str, device: str | torch.device) -> Prepared:
    """Move a data set to the device and scale it, training and test images by the same constants.

    `unit`: uint8 is divided by 255, floats must already lie in [0, 1]. `standard`: then each channel gets
    zero mean and unit variance over the training set (validation images included, as is the custom).
    `none`: as the loader gives them. The constants do not depend on the number of threads.
    """
    check_scale(scale)
    check_pixels(dataset, scale=scale)
    images, test_images = dataset.train.images.to(device), dataset.test.images.to(device)
    if scale != "none":
        images, test_images = _unit(images), _unit(test_images)
    if scale == "standard":
        mean, std = channel_moments(dataset.train.images)
        images, test_images = (_standardize(part, mean=mean, std=std) for part in (images, test_images))
    return Prepared(
        images=images.to(torch.float32),
        labels=dataset.train.labels.to(device),
        test_images=test_images.to(torch.float32),
        test_labels=dataset.test.labels.to(device),
        classes=dataset.classes,
    )


def check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise unknown("data.scale", scale, SCALES)


def check_pixels(dataset: Dataset, *, scale: str) -> None:
    """Raise a ConfigError if the pixels cannot be brought to `scale`."""
    if scale == "unit":
        _check_unit(dataset.train.images, "training")
        _check_unit(dataset.test.images, "test")
    if scale == "standard":
        flat = [channel for channel, std in enumerate(channel_moments(dataset.train.images)[1]) if std == 0]
        if flat:
            rule = "needs pixels that vary, and every training image is the same in channel"
            raise ConfigError(f"data.scale: standard {rule} {flat[0]}; take unit or none")


def _check_unit(images: Tensor, name: str) -> None:
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        rule = f"unit needs uint8 pixels or floats in [0, 1] (take standard or none), the {name} set"
        require(low >= 0 and high <= 1, "data.scale", rule, [low, high])


def _unit(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def _standardize(images: Tensor, *, mean: list[float], std: list[float]) -> Tensor:
    shape = (1, -1, 1, 1)
    centered = images - torch.tensor(mean, dtype=torch.float32, device=images.device).view(shape)
    return centered.div_(torch.tensor(std, dtype=torch.float32, device=images.device).view(shape))


def channel_moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation of each channel; uint8 pixels count as [0, 1].

    uint8 goes through a histogram: exact, fast, and free of the summation order that threads would change.
    """
    moments = [_moments(images[:, channel]) for channel in range(images.shape[1])]
    return [mean for mean, _ in moments], [std for _, std in moments]


def _moments(pixels: Tensor) -> tuple[float, float]:
    if pixels.is_floating_point():
        values, weights = pixels.numpy().astype(np.float64).ravel(), None
    else:
        values = np.arange(256) / 255
        weights = torch.bincount(pixels.flatten(), minlength=256).numpy()
    mean = float(np.average(values, weights=weights))
    return mean, float(np.average((values - mean) ** 2, weights=weights)) ** 0.5
