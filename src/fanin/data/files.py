"""Reading data files: bytes in, verified arrays out, and one clear error for each way a file can be wrong."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fanin.errors import ConfigError


class Missing(ConfigError):
    """The files are not there; what else could be wrong with them is a plain ConfigError."""


def read(path: Path) -> bytes:
    """The content of a file, decompressed if its name ends in .gz (a tar archive stays one)."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" and not path.name.endswith(".tar.gz"):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"data: {path} is corrupt: not a complete gzip file ({error})") from error
    except OSError as error:
        raise ConfigError(f"data: {path} cannot be read: {error.strerror or error}") from error
    return content


def verify(content: bytes, *, algorithm: str, expected: str, path: Path) -> None:
    """Raise a ConfigError unless the digest of `content` is the one that its publisher's file has."""
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        problem = f"its {algorithm} should be {expected} and is {found}"
        raise ConfigError(f"data: {path} is corrupt or another version: {problem}; delete it and fetch it again")


def parse_idx(content: bytes, *, dimensions: int, path: Path) -> np.ndarray:
    """The read-only uint8 array of an idx file (header: 0 0 8 `dimensions`, then a big-endian int32 each)."""
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        problem = f"its magic number should be 0x{magic.hex()} and is 0x{content[:4].hex()}"
        raise ConfigError(f"data: {path} is no idx file of {dimensions}-dimensional bytes: {problem}")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], dtype=">u4").tolist()
    size = start + int(np.prod(shape, dtype=np.int64))
    if len(shape) < dimensions or len(content) != size:
        kind = "truncated" if len(content) < max(size, start) else "corrupt"
        raise ConfigError(f"data: {path} is {kind}: its header says {size} bytes, it has {len(content)}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def parse_table(content: bytes, *, columns: int, path: Path) -> np.ndarray:
    """The uint8 array (rows, columns) of a headerless comma-separated file of small whole numbers."""
    values = np.fromstring(content.replace(b"\n", b","), dtype=np.uint8, sep=",")  # 10x faster than genfromtxt
    assert values.size % columns == 0, f"{path} was verified, and yet does not have {columns} columns"
    return values.reshape(-1, columns)


def parse_cifar(content: bytes, *, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one of CIFAR's pickled batches."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        images, labels = batch["data"].reshape(-1, 3, 32, 32), np.array(batch["labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"data: {path} is no CIFAR batch: {error}") from error
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists and arrays and nothing else, for a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return lambda kind, align, copy: np.dtype(kind, copy=True)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda kind, shape, dtype: np.ndarray((0,), np.uint8)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def read_members(archive: Path, *, folder: str, names: list[str]) -> dict[str, bytes]:
    """Some files of a tar.gz archive, without unpacking it."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            files = {name: tar.extractfile(f"{folder}/{name}") for name in names}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, KeyError, EOFError, zlib.error, OSError) as error:
        raise ConfigError(f"data: {archive} is corrupt or another archive: {error}") from error
