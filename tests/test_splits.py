import numpy as np
import pytest
import torch

from fanin import data
from fanin.data.splits import channel_moments
from fanin.errors import ConfigError
from fanin.randomness import Streams


def dataset(shape=(1, 6, 6), count=40, scale=None):
    """Random images and labels, the test set darker. `scale`: as floats up to it."""
    generator = np.random.default_rng(0)
    parts = []
    for size, high in ((count, 256), (10, 100)):
        images = generator.integers(0, high, (size, *shape), dtype=np.uint8)
        parts.append((images if scale is None else images / 255 * scale, generator.integers(0, 10, size)))
    return data.load(lambda: parts, shape=shape, classes=10)


def prepare(loaded, scale="unit"):
    return data.prepare(loaded, scale=scale, device="cpu")


def test_unit_scale_divides_bytes_by_255_and_keeps_floats():
    loaded = dataset()
    result = prepare(loaded)
    assert torch.equal(result.images, loaded.train.images.float() / 255)
    assert torch.equal(result.test_images, loaded.test.images.float() / 255)
    assert torch.allclose(prepare(dataset(scale=1.0)).images, result.images)
    assert result.images.dtype == torch.float32 and result.shape == (1, 6, 6)


@pytest.mark.parametrize("scale", [None, 7.0])
def test_standard_scale_takes_every_constant_from_the_training_set(scale):
    loaded = dataset(shape=(3, 6, 6), scale=scale)
    result = prepare(loaded, "standard")
    train, test = (part.images.double() / (255 if scale is None else 1) for part in (loaded.train, loaded.test))
    mean = train.mean(dim=(0, 2, 3), keepdim=True)
    std = train.std(dim=(0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(result.images.double(), (train - mean) / std, atol=1e-5)
    assert torch.allclose(result.test_images.double(), (test - mean) / std, atol=1e-5)
    assert result.images.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert result.test_images.mean() < -0.5


def test_scale_none_hands_pixels_over_as_they_come():
    loaded = dataset()
    assert torch.equal(prepare(loaded, "none").images, loaded.train.images.float())


def test_preparing_leaves_the_data_set_as_it_was():
    for scale in ("unit", "standard", "none"):
        loaded = dataset(scale=1.0)
        before = loaded.train.images.clone()
        prepare(loaded, scale)
        assert torch.equal(loaded.train.images, before)


def test_moments_do_not_depend_on_the_number_of_threads():
    loaded = dataset(count=2000, scale=3.0)
    threads = torch.get_num_threads()
    alone = channel_moments(loaded.train.images), prepare(loaded, "standard").images
    try:
        torch.set_num_threads(2)
        together = channel_moments(loaded.train.images), prepare(loaded, "standard").images
    finally:
        torch.set_num_threads(threads)
    assert alone[0] == together[0] and torch.equal(alone[1], together[1])


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_floats_outside_the_unit_interval_need_another_scale(factor):
    with pytest.raises(ConfigError, match=r"data\.scale: unit needs .*take standard or none"):
        prepare(dataset(scale=factor))
    prepare(dataset(scale=factor), "standard")
    prepare(dataset(scale=factor), "none")


def test_a_constant_channel_cannot_be_standardized():
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 4, 4), dtype=np.uint8)
    images[:, 1] = 9
    part = (images, np.arange(20) % 2)
    with pytest.raises(ConfigError, match=r"data\.scale: standard needs .* same in channel 1"):
        prepare(data.load(lambda: (part, part), shape=[2, 4, 4], classes=2), "standard")


def split(prepared, val=8, n_train=None, seed=0, replicate=0):
    return data.split(prepared, val=val, n_train=n_train, streams=Streams(seed=seed, replicate=replicate))


def test_training_and_validation_images_share_out_the_training_set():
    result = split(prepare(dataset()))
    assert len(result.val) == 8 and len(result.train) == 32
    assert sorted(result.val.tolist() + result.train.tolist()) == list(range(40))


def test_the_test_set_is_not_split():
    prepared = prepare(dataset())
    result = split(prepared)
    assert result.test_images is prepared.test_images and result.test_labels is prepared.test_labels


def test_a_split_copies_no_images():
    prepared = prepare(dataset())
    assert split(prepared).images.data_ptr() == split(prepared, seed=1).images.data_ptr()


def test_fewer_training_images_are_the_first_of_the_same_order_and_the_validation_set_stays():
    prepared = prepare(dataset())
    everything, few = split(prepared), split(prepared, n_train=5)
    assert torch.equal(few.train, everything.train[:5]) and torch.equal(few.val, everything.val)


def test_the_split_depends_on_seed_and_replicate_and_on_no_other_randomness():
    prepared = prepare(dataset())
    first = split(prepared)
    torch.manual_seed(99)
    again = split(prepared)
    assert torch.equal(first.train, again.train) and torch.equal(first.val, again.val)
    for other in (split(prepared, seed=1), split(prepared, replicate=1)):
        assert not torch.equal(first.val, other.val)


def test_splitting_does_not_advance_the_global_stream():
    prepared = prepare(dataset())
    before = torch.get_rng_state()
    split(prepared)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sorted_data_set_is_shuffled_before_it_is_split():
    loaded = data.load(data.mnist_5k, shape=[1, 28, 28], classes=10)
    result = split(prepare(loaded), val=500)
    counts = torch.bincount(result.labels[result.val], minlength=10)
    assert counts.min() > 25 and counts.max() < 80  # 50 expected, standard deviation 6.3
