"""The data sets fanin knows: where their files lie, what is in them, and how to tell that they are intact.

Each source is a loader (called with the options of its file in conf/data it returns a Dataset) that can also
`fetch` what is missing and `check_files` without building tensors.
"""

import importlib.util
import os
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from fanin.data.files import Missing, parse_cifar, parse_idx, parse_table, read, read_members, verify
from fanin.data.images import Dataset, Images, Shape
from fanin.errors import ConfigError, require

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) and labels (N,)


@dataclass(frozen=True)
class Outline:
    """What a data set holds: how many training and test images, of which (C, H, W), in how many classes."""

    train: int
    test: int
    shape: Shape
    classes: int


@runtime_checkable
class Source(Protocol):
    """A loader whose files can be checked and fetched apart from loading them."""

    def check_files(self, *args: Any, **options: Any) -> Outline: ...
    def fetch(self, *args: Any, **options: Any) -> None: ...


@dataclass(frozen=True)
class IdxFiles:
    """A data set in MNIST's four files, under `root`/`folder`/raw, plain or as .gz.

    `sha256` is of the uncompressed content, so that a recompressed file is as good as the original; where it
    is not known, `md5` of the published .gz must match, and a plain file is checked for its structure only.
    """

    folder: str  # torchvision's class name, too
    sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    md5: Mapping[str, str] = field(default_factory=dict, repr=False)
    outline: Outline = field(default=Outline(60_000, 10_000, shape=(1, 28, 28), classes=10), repr=False)

    def __call__(self, *, root: str, download: bool) -> Dataset:
        self.fetch(root=root, download=download)
        return _dataset(self._read("train", root), self._read("t10k", root), classes=self.outline.classes)

    def check_files(self, *, root: str, download: bool) -> Outline:
        missing = self._missing(root)
        if missing:
            _require_download(missing[0], download=download)
            return self.outline
        for name in ("train", "t10k"):
            self._read(name, root)
        return self.outline

    def fetch(self, *, root: str, download: bool) -> None:
        missing = self._missing(root)
        if missing:
            _require_download(missing[0], download=download)
            _download(self.folder, subfolder=f"{self.folder}/raw", root=_root(root))

    def _missing(self, root: str) -> list[Path]:
        names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        paths = [_root(root) / self.folder / "raw" / name for name in names]
        return [path for path in paths if not path.exists() and not _gz(path).exists()]

    def _read(self, part: str, root: str) -> Arrays:
        folder = _root(root) / self.folder / "raw"
        count = self.outline.train if part == "train" else self.outline.test
        images = self._read_array(folder / f"{part}-images-idx3-ubyte", shape=(count, *self.outline.shape[1:]))
        labels = self._read_array(folder / f"{part}-labels-idx1-ubyte", shape=(count,))
        rule = f"the labels in {folder}/{part}-labels-idx1-ubyte must lie in 0..{self.outline.classes - 1}"
        require(labels.max() < self.outline.classes, "data", rule, int(labels.max()))
        return images[:, None], labels

    def _read_array(self, path: Path, *, shape: tuple[int, ...]) -> np.ndarray:
        sha256, name = self.sha256.get(path.name), path.name
        if not path.exists() or (sha256 is None and _gz(path).exists()):
            path = _gz(path)  # without a digest of the content, the .gz is the one that can be verified
        content = read(path)
        array = parse_idx(content, dimensions=len(shape), path=path)
        rule = f"{path} is another data set: its array should have the shape"
        require(array.shape == shape, "data", f"{rule} {shape}", array.shape)
        if sha256 is not None:
            verify(content, algorithm="sha256", expected=sha256, path=path)
        elif path.suffix == ".gz" and name in self.md5:
            verify(path.read_bytes(), algorithm="md5", expected=self.md5[name], path=path)
        return array


@dataclass(frozen=True)
class CifarBatches:
    """CIFAR-10's pickled batches, under `root`/`folder` or still in `root`/`archive`."""

    md5: Mapping[str, str] = field(repr=False)
    folder: str = "cifar-10-batches-py"
    archive: str = "cifar-10-python.tar.gz"
    outline: Outline = field(default=Outline(50_000, 10_000, shape=(3, 32, 32), classes=10), repr=False)

    def __call__(self, *, root: str, download: bool) -> Dataset:
        self.fetch(root=root, download=download)
        batches = {name: parse_cifar(batch, path=Path(name)) for name, batch in self._read(root).items()}
        test = batches.pop("test_batch")
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches.values(), strict=True))
        return _dataset((images, labels), test, classes=self.outline.classes)

    def check_files(self, *, root: str, download: bool) -> Outline:
        missing = self._missing(root)
        if missing:
            _require_download(missing[0], download=download)
        else:
            self._read(root)
        return self.outline

    def fetch(self, *, root: str, download: bool) -> None:
        missing = self._missing(root)
        if missing:
            _require_download(missing[0], download=download)
            _download("CIFAR10", subfolder=self.folder, root=_root(root))

    def _missing(self, root: str) -> list[Path]:
        paths = [_root(root) / self.folder / name for name in self.md5]
        unpacked = any(path.exists() for path in paths)
        if not unpacked and (_root(root) / self.archive).exists():
            return []
        return [path for path in paths if not path.exists()]

    def _read(self, root: str) -> dict[str, bytes]:
        folder = _root(root) / self.folder
        if folder.exists():
            batches = {name: read(folder / name) for name in self.md5}
        else:
            batches = read_members(_root(root) / self.archive, folder=self.folder, names=list(self.md5))
        for name, content in batches.items():
            verify(content, algorithm="md5", expected=self.md5[name], path=folder / name)
        return batches


@dataclass(frozen=True)
class PackagedTable:
    """Rows of pixels and a label in a .csv.gz of an installed package, read without importing the package.

    The last `test` rows of each class are the test set, the same for everybody and in every run.
    """

    package: str
    project: str  # the name to `pip install`
    file: str
    sha256: str = field(repr=False)  # of the uncompressed content
    outline: Outline = field(repr=False)
    test: int
    white: int  # the largest pixel value

    def __call__(self) -> Dataset:
        path, content = self._read()
        table = parse_table(content, columns=int(np.prod(self.outline.shape)) + 1, path=path)
        labels = table[:, -1]
        images = table[:, :-1].reshape(-1, *self.outline.shape)
        if self.white != 255:  # uint8 would be read as 0..255
            images = images.astype(np.float32) / np.float32(self.white)
        test = np.zeros(len(labels), dtype=bool)
        for label in range(self.outline.classes):
            test[np.flatnonzero(labels == label)[-self.test :]] = True
        train = ~test
        return _dataset((images[train], labels[train]), (images[test], labels[test]), classes=self.outline.classes)

    def check_files(self) -> Outline:
        self._read()
        return self.outline

    def fetch(self) -> None:
        """Nothing to do: the files came with the package."""

    def _read(self) -> tuple[Path, bytes]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            way = f"pip install {self.project}, or choose another data set"
            raise Missing(f"data: these images come with the package {self.project}, not installed; {way}")
        path = Path(spec.submodule_search_locations[0]) / self.file
        content = read(path)
        verify(content, algorithm="sha256", expected=self.sha256, path=path)
        return path, content


def npz(*, path: str) -> tuple[Arrays, Arrays]:
    """A user's own images from one .npz file with the arrays x_train, y_train, x_test, y_test."""
    require(path and isinstance(path, (str, os.PathLike)), "data.path", "must name an .npz file", path)
    names = ("x_train", "y_train", "x_test", "y_test")
    if not Path(path).is_file():
        raise Missing(f"data.path: {path} is missing; np.savez writes one, with {', '.join(names)}")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"data.path: {path} is no intact .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[name] for name in names)
    except KeyError as error:
        raise ConfigError(f"data.path: {path} must hold the arrays {', '.join(names)}: {error}") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"data.path: {path} is no intact .npz file of plain arrays: {error}") from error
    return (x_train, y_train), (x_test, y_test)


def _dataset(train: Arrays, test: Arrays, *, classes: int) -> Dataset:
    parts = []
    for images, labels in (train, test):
        pixels = torch.from_numpy(images.copy())  # the parsers' arrays are read-only views of the file
        parts.append(Images(images=pixels, labels=torch.from_numpy(labels.astype(np.int64))))
    return Dataset(train=parts[0], test=parts[1], classes=classes)


def _gz(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _root(root: object) -> Path:
    require(
        root and isinstance(root, (str, os.PathLike)),
        "data.root",
        "must be the folder of the data sets",
        root,
    )
    return Path(str(root))


def _require_download(missing: Path, *, download: object) -> None:
    require(isinstance(download, bool), "data.download", "must be true or false", download)
    if not download:
        way = "put it there, point data.root or FANIN_DATA at its root, or set data.download=true"
        raise Missing(f"data.root: {missing} is missing; {way} (data=mnist_5k needs no files)")


def _download(name: str, *, subfolder: str, root: Path) -> None:
    """Let torchvision download the data set, then move its files into place at once.

    The detour keeps a half-downloaded file from being read by a sweep that starts in the meantime.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            from fanin.vision import torchvision  # slow to import, and seldom needed

            with _timeout(seconds=30):
                getattr(torchvision.datasets, name)(folder, download=True)
            target = root / subfolder
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((Path(folder) / subfolder).iterdir()):
                os.replace(file, target / file.name)
    except (RuntimeError, OSError) as error:
        way = f"check the network, or put the files into {root / subfolder} (data=mnist_5k needs no download)"
        reason = " ".join(str(error).split())  # torchvision's goes over several lines
        raise ConfigError(f"data.download: {name} could not be downloaded: {reason}; {way}") from error


@contextmanager
def _timeout(*, seconds: float) -> Iterator[None]:
    """Let no silent server hang the download: torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
