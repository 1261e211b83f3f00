"""Data sets: `check` before the first run, `fetch` once, then `load`, `prepare` per worker, `split` per run.

A file in conf/data names a loader (`_target_`), what it is to hold (`shape`, `classes`), how to cut and scale
it (`val`, `n_train`, `scale`), and the loader's own options. A loader is any callable whose result
`as_dataset` accepts; `check`, `fetch` and `load` take the whole group, so that nobody has to sort the keys:

    settings = {"shape": [1, 28, 28], "classes": 10, "val": 500, "n_train": None, "scale": "unit"}
    check(mnist_5k, **settings)
    prepared = prepare(load(mnist_5k, **settings), scale="unit", device="cpu")
    data = split(prepared, val=500, n_train=None, streams=Streams(seed=0, replicate=0))
"""

from collections.abc import Sequence
from typing import Any

from fanin.data.catalog import cifar10, digits, fashion_mnist, kmnist, mnist, mnist_5k, mnist_unscaled_test, shapeset
from fanin.data.files import Missing
from fanin.data.images import Dataset, Images, Shape, as_dataset
from fanin.data.sources import Outline, Source, npz
from fanin.data.splits import Prepared, Split, check_pixels, check_scale, check_sizes, prepare, split
from fanin.errors import ConfigError, require
from fanin.ranges import is_whole
from fanin.signatures import check_options, label

__all__ = [
    "Dataset", "Images", "Missing", "Outline", "Prepared", "Shape", "Source", "Split",
    "as_dataset", "check", "fetch", "load", "prepare", "split",
    "cifar10", "digits", "fashion_mnist", "kmnist", "mnist", "mnist_5k", "mnist_unscaled_test", "npz", "shapeset",
]  # fmt: skip

Loader = Any  # a callable, which mypy would not believe to be a Source


def check(
    loader: Loader,
    *,
    shape: Sequence[int],
    classes: int,
    val: int,
    n_train: int | None,
    scale: str,
    **options: Any,
) -> Outline:
    """Find out without a run, and without a download, whether this data group can be used.

    Files of the built-in sets are verified in well under a second; what may still be downloaded passes. A
    user's loader is called, for nothing less can tell. Raises ConfigError with the key or file that is wrong.
    """
    _check_group(loader, shape=shape, classes=classes, options=options)
    check_scale(scale)
    if isinstance(loader, Source):
        outline = loader.check_files(**options)
        rule = f"must be {list(outline.shape)}, the (channels, height, width) of this data set"
        require(tuple(shape) == outline.shape, "data.shape", rule, list(shape))
        require(classes == outline.classes, "data.classes", f"must be {outline.classes} here", classes)
    else:
        dataset = load(loader, shape=shape, classes=classes, **options)
        check_pixels(dataset, scale=scale)
        outline = Outline(len(dataset.train), len(dataset.test), dataset.shape, classes)
    check_sizes(outline.train, val=val, n_train=n_train)
    return outline


def fetch(loader: Loader, *, shape: Sequence[int], classes: int, **options: Any) -> None:
    """Download the files that are missing, if the options allow it. Call it once, before workers start."""
    options = _own_options(options)
    _check_group(loader, shape=shape, classes=classes, options=options)
    if isinstance(loader, Source):
        loader.fetch(**options)
        loader.check_files(**options)


def load(loader: Loader, *, shape: Sequence[int], classes: int, **options: Any) -> Dataset:
    """The loader's data set, converted and validated. Raises ConfigError."""
    options = _own_options(options)
    _check_group(loader, shape=shape, classes=classes, options=options)
    try:
        loaded = loader(**options)
    except OSError as error:
        raise ConfigError(f"data: {label(loader)} cannot read its data: {error}") from error
    channels, height, width = shape
    return as_dataset(loaded, shape=(channels, height, width), classes=classes)


def _own_options(options: dict[str, Any]) -> dict[str, Any]:
    """The loader's own options: the group without the keys that `split` and `prepare` take."""
    return {key: value for key, value in options.items() if key not in ("val", "n_train", "scale")}


def _check_group(loader: Loader, *, shape: Sequence[int], classes: int, options: dict[str, Any]) -> None:
    require(callable(loader), "data._target_", "must name a callable", loader)
    sizes = list(shape) if isinstance(shape, Sequence) else []
    three = len(sizes) == 3 and all(is_whole(size, least=1) for size in sizes)
    require(three, "data.shape", "must be three positive whole numbers [channels, height, width]", shape)
    require(is_whole(classes, least=2), "data.classes", "must be a whole number of at least 2", classes)
    check_options(loader, options, group="data")
