import numpy as np
import pytest
import torch
from draws import random_images
from PIL import Image

from fanin import data
from fanin.errors import ConfigError

GROUP = {"shape": [1, 28, 28], "classes": 10, "val": 5, "n_train": None, "scale": "unit"}


def arrays(count=40, shape=(28, 28), dtype=np.uint8, seed=0):
    images, labels = random_images(count, seed, shape)
    return images.astype(dtype), labels.astype(np.int64)


def loads(train, test=None, **options):
    """Load from a user's function that returns these parts."""
    group = {"shape": [1, 28, 28], "classes": 10} | options
    return data.load(lambda: (train, arrays(10, seed=1) if test is None else test), **group)


def tensor_dataset(images, labels):
    return torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


class Pictures(torch.utils.data.Dataset):
    """A map-style dataset of PIL images, as torchvision's are."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), int(self.labels[index])


@pytest.mark.parametrize(
    "convert",
    [
        lambda images, labels: (images, labels),
        lambda images, labels: [images[:, None], labels[:, None]],
        lambda images, labels: (images.reshape(len(images), -1), labels.astype(np.uint8)),
        lambda images, labels: (images[..., None], labels.tolist()),
        lambda images, labels: (images.astype(np.int32), labels.astype(np.uint16)),
        lambda images, labels: (images.astype(np.uint16), torch.from_numpy(labels)),
        lambda images, labels: (torch.from_numpy(images), torch.from_numpy(labels)),
        lambda images, labels: data.Images(torch.from_numpy(images[:, None]), torch.from_numpy(labels)),
        tensor_dataset,
        lambda images, labels: torch.utils.data.Subset(tensor_dataset(images, labels), range(len(labels))),
        Pictures,
    ],
)
def test_every_form_of_a_users_images_gives_the_same_data_set(convert):
    images, labels = arrays()
    loaded = loads(convert(images, labels), convert(*arrays(10, seed=1)))
    assert loaded.train.images.dtype == torch.uint8 and loaded.train.labels.dtype == torch.int64
    assert np.array_equal(loaded.train.images.numpy(), images[:, None])
    assert np.array_equal(loaded.train.labels.numpy(), labels)
    assert loaded.classes == 10 and len(loaded.test) == 10 and loaded.shape == (1, 28, 28)


def test_color_pictures_become_channels_first():
    images, labels = arrays(shape=(6, 8, 3))
    for part in (Pictures(images, labels), (images, labels)):
        loaded = loads(part, part, shape=[3, 6, 8])
        assert np.array_equal(loaded.train.images.numpy(), images.transpose(0, 3, 1, 2))


def test_floats_and_bools_become_float32():
    images, labels = arrays()
    assert loads((images / 255.0, labels)).train.images.dtype == torch.float32
    black_white = loads((images > 127, labels)).train.images
    assert black_white.dtype == torch.float32 and black_white.unique().tolist() == [0.0, 1.0]


def test_what_the_users_array_does_later_does_not_reach_the_data_set():
    images, labels = arrays()
    loaded = loads((images, labels))
    images[:] = 0
    assert loaded.train.images.any()


def broken(**changes):
    images, labels = arrays()
    return changes.get("images", images), changes.get("labels", labels)


def nan_images():
    images = arrays(dtype=np.float64)[0] / 255
    images[3, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    "train,message",
    [
        (
            broken(labels=np.arange(39) % 10),
            "every training image needs one label, got 40 images and 39 labels",
        ),
        (broken(labels=np.arange(40) % 11), r"lie in 0\.\.9 \(data\.classes is 10\), got 10 for image 10"),
        (broken(labels=np.arange(40) % 10 - 1), r"lie in 0\.\.9 .* got -1 for image 0"),
        (broken(labels=np.eye(10)[np.arange(40) % 10]), "one-hot rows take their argmax"),
        (broken(labels=np.linspace(0, 9, 40)), "training labels must be integers, got torch.float64"),
        (broken(labels=np.array(["cat"] * 40)), "training labels must be real numbers, got an array of <U3"),
        (broken(images=arrays(shape=(8, 8))[0]), r"one of the training set is \(8, 8\); got \[1, 28, 28\]"),
        (broken(images=arrays(shape=(3, 28, 28))[0]), r"data\.shape.*\(3, 28, 28\)"),
        (broken(images=nan_images()), "training pixels must be finite, got NaN or infinity in image 3"),
        (broken(images=arrays(dtype=np.int64)[0] - 1), r"integers must lie in 0\.\.255, got \[-1, 254\]"),
        (broken(images=arrays(dtype=np.complex64)[0]), "training images must be real numbers"),
        (broken(images=[[1, 2], [3]]), "training images do not form one array"),
        (broken(images=np.zeros((0, 28, 28)), labels=np.zeros(0, np.int64)), "at least one image"),
        (([], []), "at least one image"),
        (np.zeros((40, 28, 28)), "training part must be a pair .* got ndarray"),
        ({"x": 1}, "training part must be a pair .* got dict"),
        (None, "training part must be a pair .* got NoneType"),
        (Pictures(arrays()[0], []), "at least one image"),
        (
            [(np.zeros((28, 28)), 0), (np.zeros((8, 8)), 1), 3],
            r"training image 1 must have the shape .* \(8, 8\) after \(28",
        ),
        ([(np.zeros((28, 28)), 0), 7, 3], "item 1 of the training set must be a pair"),
        ([(np.zeros((28, 28)), [0, 1])] * 3, r"training label 0 must be one number, got \(2,\)"),
    ],
)
def test_a_users_mistake_is_named(train, message):
    with pytest.raises(ConfigError, match=message):
        loads(train)


def test_a_mistake_in_the_test_part_is_named_as_such():
    with pytest.raises(ConfigError, match="every test image needs one label"):
        loads(arrays(), (arrays()[0], [1, 2]))


@pytest.mark.parametrize("returned", [None, 5, (1, 2, 3), "ab"])
def test_a_loader_that_returns_something_else_is_told_what_to_return(returned):
    with pytest.raises(ConfigError, match="must return a fanin.data.Dataset or a pair|must be a pair"):
        data.load(lambda: returned, shape=[1, 28, 28], classes=10)


def test_a_users_file_that_is_missing_is_a_clear_error():
    def loader(*, path):
        return open(path)

    with pytest.raises(ConfigError, match="loader cannot read its data: .*no-such-file"):
        data.load(loader, path="no-such-file", shape=[1, 28, 28], classes=10)


def test_the_check_of_a_users_loader_finds_its_mistakes_before_any_run():
    group = {**GROUP, "classes": 5}
    with pytest.raises(ConfigError, match=r"lie in 0\.\.4"):
        data.check(lambda: (arrays(), arrays()), **group)
    with pytest.raises(ConfigError, match=r"data\.scale: unit needs .* got \[0\.0, 255\.0\]"):
        data.check(lambda: (arrays(dtype=np.float32), arrays()), **GROUP)
    assert data.check(lambda: (arrays(), arrays(7)), **GROUP).test == 7


@pytest.mark.parametrize(
    ("shape", "fitting"), [((16, 12), r"\[1,16,12\]"), ((16, 12, 3), r"\[3,16,12\]"), ((3, 16, 12), r"\[3,16,12\]")]
)
def test_images_of_another_shape_are_refused_with_the_one_that_fits(shape, fitting):
    with pytest.raises(ConfigError, match=f"data.shape: must be .*; data.shape={fitting} fits"):
        loads(arrays(shape=shape), arrays(10, shape=shape))


def test_classes_that_no_training_image_has_are_refused_since_chance_would_be_misjudged():
    images, labels = arrays()
    with pytest.raises(ConfigError, match="data.classes: must be 4: the highest label of the training images is 3"):
        loads((images, labels % 4))
