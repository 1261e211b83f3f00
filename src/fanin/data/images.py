"""Labelled images in memory, and the conversion of whatever a user's loader returns into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.errors import ConfigError, require

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Images:
    """`images` (N, C, H, W), uint8 or float32, and their `labels` (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """What a loader returns. Validation images are taken out of `train` later (see splits.py)."""

    train: Images
    test: Images
    classes: int

    @property
    def shape(self) -> Shape:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def as_dataset(loaded: Any, *, shape: Shape, classes: int) -> Dataset:
    """Convert and validate what a loader returned.

    `loaded` is a Dataset, or a pair (train, test) whose parts are each a pair (images, labels) of tensors or
    arrays, or a map-style torch Dataset of (image, label). Images may be (N, C, H, W), (N, H, W, C), flat
    (N, C*H*W), or (N, H, W) if C = 1; uint8, other integers in 0..255, bool, or finite floats. A torch
    Dataset is read once, item by item: its random transforms, if any, are frozen by that.

    Raises ConfigError for everything else, with the part and the first offending image or label.
    """
    counted = not isinstance(loaded, Dataset)  # whose classes are known
    if not counted:
        loaded = (loaded.train, loaded.test)
    if not (isinstance(loaded, Sequence) and len(loaded) == 2):
        rule = "the loader must return a fanin.data.Dataset or a pair (train, test)"
        raise ConfigError(f"data._target_: {rule}, got {type(loaded).__name__}")
    train, test = loaded
    training = _as_images(train, "training", shape=shape, classes=classes)
    if counted:
        most = int(training.labels.max())
        rule = f"must be {most + 1}: the highest label of the training images is {most}, and counting starts at 0"
        require(most + 1 == classes, "data.classes", rule, classes)
    return Dataset(
        train=training,
        test=_as_images(test, "test", shape=shape, classes=classes),
        classes=classes,
    )


def _as_images(part: Any, name: str, *, shape: Shape, classes: int) -> Images:
    images, labels = _columns(part, name)
    require(images.ndim > 0 and labels.ndim > 0, "data", f"the {name} images and labels must be arrays", part)
    require(len(images) > 0, "data", f"the {name} set must hold at least one image", len(images))
    if len(images) != len(labels):
        counts = f"{len(images)} images and {len(labels)} labels"
        raise ConfigError(f"data: every {name} image needs one label, got {counts}")
    return Images(
        images=_pixels(_arrange(images, name, shape=shape), name),
        labels=_labels(labels, name, classes=classes),
    )


def _columns(part: Any, name: str) -> tuple[Tensor, Tensor]:
    """All images and all labels of one part, as they come."""
    if isinstance(part, Images):
        part = (part.images, part.labels)
    if isinstance(part, torch.utils.data.TensorDataset):
        part = part.tensors
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return _tensor(part[0], f"{name} images"), _tensor(part[1], f"{name} labels")
    reads = hasattr(part, "__getitem__") and hasattr(part, "__len__")
    if not reads or isinstance(part, (Tensor, np.ndarray, Mapping, str)):
        rule = f"the {name} part must be a pair (images, labels) or a torch Dataset with a length"
        raise ConfigError(f"data._target_: {rule}, got {type(part).__name__}")
    return _collect(part, name)


def _collect(part: Any, name: str) -> tuple[Tensor, Tensor]:
    """Every item of a map-style dataset. PIL images become arrays of (H, W) or (H, W, C)."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for index in range(len(part)):
        image, label = _item(part[index], f"{name} set", index=index)
        if images and image.shape != images[0].shape:
            shapes = f"{tuple(image.shape)} after {tuple(images[0].shape)}"
            raise ConfigError(f"data: {name} image {index} must have the shape of those before it, got {shapes}")
        require(label.numel() == 1, "data", f"{name} label {index} must be one number", tuple(label.shape))
        images.append(image)
        labels.append(label.reshape(()))
    require(images, "data", f"the {name} set must hold at least one image", 0)
    return torch.stack(images), torch.stack(labels)


def _item(item: Any, name: str, *, index: int) -> tuple[Tensor, Tensor]:
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        rule = f"item {index} of the {name} must be a pair (image, label)"
        raise ConfigError(f"data: {rule}, got {type(item).__name__}")
    return _tensor(item[0], f"image {index} of the {name}"), _tensor(item[1], f"label {index} of the {name}")


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        array = np.array(values)  # a copy: what the user's array does later must not reach a run
    except ValueError as error:
        raise ConfigError(f"data: the {name} do not form one array: {error}") from error
    if array.dtype.kind not in "buif":
        raise ConfigError(f"data: the {name} must be real numbers, got an array of {array.dtype}")
    wide = array.dtype.kind == "u" and array.dtype != np.uint8  # torch does little with uint16 and up
    return torch.from_numpy(array.astype(np.int64) if wide else array)


def _arrange(images: Tensor, name: str, *, shape: Shape) -> Tensor:
    """The images as (N, C, H, W)."""
    channels, height, width = shape
    found = tuple(images.shape[1:])
    if found == shape:
        return images
    if found == (height, width, channels):
        return images.permute(0, 3, 1, 2).contiguous()
    if (channels == 1 and found == (height, width)) or found == (channels * height * width,):
        return images.reshape(-1, *shape)
    rule = f"must be the (channels, height, width) of the images, but one of the {name} set is {found}"
    raise ConfigError(f"data.shape: {rule}; got {list(shape)}{_likely(found)}")


def _likely(found: tuple[int, ...]) -> str:
    """The shape that images which come as `found` have: grey ones (H, W), or of 1, 3 or 4 channels, first or last."""
    if len(found) == 2:
        shape = [1, *found]
    elif len(found) == 3 and found[0] in (1, 3, 4):
        shape = list(found)
    elif len(found) == 3 and found[2] in (1, 3, 4):
        shape = [found[2], *found[:2]]
    else:
        return ""
    return f"; data.shape={str(shape).replace(' ', '')} fits"


def _pixels(images: Tensor, name: str) -> Tensor:
    """uint8 as it is, floats as float32, bools as 0.0 and 1.0, other integers as uint8 if they fit."""
    if images.dtype == torch.uint8:
        return images
    if images.is_floating_point() or images.dtype == torch.bool:
        wrong = (~torch.isfinite(images)).flatten(1).any(1).nonzero()
        if len(wrong):
            where = f"NaN or infinity in image {int(wrong[0])}"
            raise ConfigError(f"data: {name} pixels must be finite, got {where}")
        return images.to(torch.float32)
    require(not images.is_complex(), "data", f"{name} pixels must be real numbers", images.dtype)
    low, high = int(images.min()), int(images.max())
    rule = f"{name} pixels that are integers must lie in 0..255"
    require(0 <= low and high <= 255, "data", rule, [low, high])
    return images.to(torch.uint8)


def _labels(labels: Tensor, name: str, *, classes: int) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        rule = f"{name} labels must be one class index an image (for one-hot rows take their argmax)"
        raise ConfigError(f"data: {rule}, got the shape {tuple(labels.shape)}")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    require(whole, "data", f"{name} labels must be integers", labels.dtype)
    labels = labels.to(torch.int64)
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        rule = f"{name} labels must lie in 0..{classes - 1} (data.classes is {classes})"
        raise ConfigError(f"data.classes: {rule}, got {int(labels[index])} for image {index}")
    return labels
