"""The images of Shapeset-3x2 against geometry, and what a network finds in them."""

import hashlib
from collections import Counter
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.path import Path as Outline
from scipy import ndimage
from trained import configuration, train

from fanin import data
from fanin.data import shapes
from fanin.errors import ConfigError

CHOICE = yaml.safe_load((Path(__file__).parent.parent / "conf" / "data" / "shapeset.yaml").read_text())
GROUP = {key: value for key, value in CHOICE.items() if key != "_target_"}
OPTIONS = {"train": 1800, "test": 180, "balance": "even", "seed": 0}
TRIANGLE, PARALLELOGRAM, ELLIPSE = range(3)
AREAS = {TRIANGLE: 0.75 * 3**0.5, PARALLELOGRAM: 2.0, ELLIPSE: np.pi}  # in the unit circle


@pytest.fixture(scope="module")
def drawn():
    return data.shapeset(**OPTIONS)


def pixels(images):
    return images.images[:, 0].numpy()


def objects(kind, count=400, seed=0):
    """Forms, centers and the pixels of some objects of a kind."""
    uniform = np.random.default_rng(seed).random((6, count))
    forms = shapes.stretch(32 * (0.2 + 0.6 * uniform[:2]), turns=2 * np.pi * uniform[2:4])
    centers = shapes.place(forms, uniform[4:], corners=shapes.CORNERS[kind])
    return forms, centers, shapes.fill(forms, centers, corners=shapes.CORNERS[kind])


# Geometry


@pytest.mark.parametrize("kind", AREAS)
def test_objects_have_the_area_of_their_closed_form(kind):
    forms, _, inside = objects(kind)
    areas = AREAS[kind] * np.abs(np.linalg.det(forms))
    assert inside.sum() == pytest.approx(areas.sum(), rel=0.01)
    large = areas > np.quantile(areas, 0.75)
    assert inside.sum((1, 2))[large] == pytest.approx(areas[large], rel=0.08)


def test_a_form_is_stretched_along_x_and_y_to_its_two_diameters():
    form = shapes.stretch(np.array([[20.0], [8.0]]), turns=np.zeros((2, 1)))
    assert np.allclose(form, [[[10, 0], [0, 4]]])
    inside = shapes.fill(form, np.array([[16.0, 10.0]]), corners=0)[0]
    y, x = np.mgrid[:32, :32] + 0.5
    assert np.array_equal(inside, ((x - 16) / 10) ** 2 + ((y - 10) / 4) ** 2 <= 1)


@pytest.mark.parametrize("kind", [TRIANGLE, PARALLELOGRAM])
def test_polygons_cover_the_pixels_that_matplotlib_finds_in_their_outline(kind):
    corners = shapes.CORNERS[kind]
    angles = 2 * np.pi * np.arange(corners) / corners
    centers_of_pixels = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5), -1).reshape(-1, 2)
    for form, center, inside in zip(*objects(kind, count=50), strict=True):
        outline = center + np.stack([np.cos(angles), np.sin(angles)], 1) @ form.T
        assert np.array_equal(Outline(outline).contains_points(centers_of_pixels).reshape(32, 32), inside)


def test_objects_of_all_kinds_keep_a_pixel_from_the_border_and_reach_it_on_every_side():
    for kind in AREAS:
        inside = objects(kind, count=4000)[2].any(0)
        assert not (inside[[0, -1]].any() or inside[:, [0, -1]].any())
        assert all(side.any() for side in (inside[1], inside[-2], inside[:, 1], inside[:, -2]))


def test_a_second_object_leaves_half_of_the_first_in_sight_and_often_covers_some():
    kinds = np.arange(900) % 3
    behind = shapes.draw_objects(kinds, np.random.RandomState(0))
    front = shapes.draw_over(behind, kinds[::-1], np.random.RandomState(1))
    hidden = (behind & front).sum((1, 2)) / behind.sum((1, 2))
    assert hidden.max() <= 0.5
    assert (hidden > 0.4).sum() > 20 and 0.2 < (hidden > 0).mean() < 0.9
    free = shapes.draw_objects(kinds[::-1], np.random.RandomState(1))
    fits = (behind & free).sum((1, 2)) <= 0.5 * behind.sum((1, 2))
    assert np.array_equal(free[fits], front[fits]), "what fits at once is kept: no size or place is preferred"


# Images and classes


def test_an_object_alone_is_one_connected_patch_of_one_gray_on_a_ground_of_the_other_range(drawn):
    alone = pixels(drawn.train)[drawn.train.labels.numpy() < 3]
    for image in alone:
        ground, gray = image[0, 0], set(np.unique(image)) - {image[0, 0]}
        assert len(gray) == 1
        dark, bright = sorted([int(ground), int(gray.pop())])
        assert dark <= 114 and bright >= 140
        patches, count = ndimage.label(image != ground, structure=np.ones((3, 3)))
        assert np.bincount(patches.flat)[1:].max() >= 0.9 * (image != ground).sum(), count  # a thin tip may come off
    assert (alone[:, 0, 0] < 128).mean() == pytest.approx(0.5, abs=0.06)


def test_two_objects_show_two_grays_of_one_range_or_rarely_the_same(drawn):
    pairs = pixels(drawn.train)[drawn.train.labels.numpy() >= 3]
    counts = Counter(len(np.unique(image)) for image in pairs)
    assert set(counts) <= {2, 3} and 0 < counts[2] / len(pairs) < 0.03  # 1 of 115 or of 116
    for image in pairs[:100]:
        grays = np.unique(image[image != image[0, 0]])
        assert grays.max() <= 114 or grays.min() >= 140


def test_the_labels_of_single_objects_are_their_kinds():
    """Area / sqrt(det of the covariance of its points) is the same for all affine images of a form: 6 sqrt(3) for a
    triangle, 12 for a parallelogram, 4 pi for an ellipse."""
    drawn = data.shapeset(**(OPTIONS | {"train": 5400})).train
    known = {TRIANGLE: 6 * 3**0.5, PARALLELOGRAM: 12.0, ELLIPSE: 4 * np.pi}
    for kind, form in known.items():
        found = []
        for image in pixels(drawn)[drawn.labels.numpy() == kind]:
            points = np.argwhere(image != image[0, 0])
            if len(points) > 120:
                covariance = np.cov(points.T, bias=True) + np.eye(2) / 12  # a pixel is a square, not a point
                found.append(len(points) / np.linalg.det(covariance) ** 0.5)
        assert len(found) > 60 and np.median(found) == pytest.approx(form, rel=0.01)


def test_classes_are_all_ways_to_choose_one_or_two_objects_whose_order_does_not_count():
    chosen = {tuple(sorted(kind for kind in pair if kind != shapes.ALONE)) for pair in shapes.CLASSES}
    assert chosen == {(kind,) for kind in range(3)} | {(a, b) for a, b in product(range(3), repeat=2) if a <= b}
    assert len(shapes.CLASSES) == 9


def test_every_class_is_equally_frequent_if_even(drawn):
    assert torch.bincount(drawn.train.labels).tolist() == [200] * 9
    assert torch.bincount(drawn.test.labels).tolist() == [20] * 9
    counts = torch.bincount(data.shapeset(**(OPTIONS | {"train": 2000})).train.labels)
    assert counts.max() - counts.min() <= 1


def test_drawn_classes_are_as_frequent_as_chance_makes_them():
    chance = Counter({(kind,): Fraction(1, 2 * 3) for kind in range(3)})  # one object or two, each of any kind
    for pair in product(range(3), repeat=2):
        chance[tuple(sorted(pair))] += Fraction(1, 2 * 9)
    labels = data.shapeset(**(OPTIONS | {"train": 3600, "balance": "drawn"})).train.labels
    for count, pair in zip(torch.bincount(labels).tolist(), shapes.CLASSES, strict=True):
        assert count == 3600 * chance[tuple(sorted(kind for kind in pair if kind != shapes.ALONE))]


# The same images for everybody


def test_the_images_depend_on_the_seed_of_the_data_alone(drawn):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = data.shapeset(**OPTIONS)
    assert torch.equal(again.train.images, drawn.train.images) and torch.equal(again.test.images, drawn.test.images)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    other = data.shapeset(**(OPTIONS | {"seed": 1}))
    assert not any(torch.equal(*pair) for pair in zip(other.train.images, drawn.train.images, strict=True))


def test_no_image_is_in_both_parts_or_twice():
    drawn = data.shapeset(**(OPTIONS | {"train": 5400, "test": 1800}))
    digests = [image.tobytes() for part in (drawn.train, drawn.test) for image in pixels(part)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("balance", ["even", "drawn"])
def test_the_first_images_are_the_same_ones_however_many_are_asked_for(balance):
    few, many = (data.shapeset(**(OPTIONS | {"train": size, "balance": balance})).train for size in (100, 2500))
    assert torch.equal(few.images, many.images[:100]) and torch.equal(few.labels, many.labels[:100])


def test_the_images_of_a_seed_do_not_change_from_version_to_version(drawn):
    """Results of today are compared with those of next year: whoever changes an image has to give it another name."""
    found = hashlib.sha256(drawn.train.images.numpy().tobytes() + drawn.test.images.numpy().tobytes())
    assert found.hexdigest() == "9b9dbe7535e49361fd7a71a05ae911266d14263feeffb49e552001c44cfba24e"


# As a data set among the others


@pytest.mark.parametrize(
    "change,message",
    [
        ({"train": 17}, r"data\.train: must be a whole number of at least 18 images, got 17"),
        ({"train": 1e4}, r"data\.train: must be a whole number of at least 18 images, got 10000\.0"),
        ({"test": None}, r"data\.test: must be a whole number of at least 18 images, got None"),
        ({"test": True}, r"data\.test: must be a whole number"),
        ({"balance": "evn"}, r"data\.balance: 'evn' is not one of: drawn, even; did you mean 'even'"),
        ({"seed": -1}, r"data\.seed: must be a whole number from 0 to 2\^32 - 1, got -1"),
        ({"seed": "x"}, r"data\.seed: must be a whole number"),
        ({"val": 11000}, r"data\.val: must leave some of the 11000 training images"),
        ({"n_train": 10001}, r"data\.n_train: must be at most 10000"),
        ({"shape": [1, 28, 28]}, r"data\.shape: must be \[1, 32, 32\]"),
        ({"classes": 10}, r"data\.classes: must be 9 here, got 10"),
        ({"root": "data"}, r"data: 'root' is not one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_key(change, message):
    with pytest.raises(ConfigError, match=message):
        data.check(data.shapeset, **(GROUP | change))


def test_a_check_knows_what_will_be_drawn_without_drawing_it(monkeypatch):
    monkeypatch.setattr(shapes, "draw", None)
    assert data.check(data.shapeset, **GROUP) == data.Outline(11000, 2000, shape=(1, 32, 32), classes=9)
    data.fetch(data.shapeset, **GROUP)


@pytest.mark.parametrize("model,train_size,more", [("mlp", 7200, []), ("cnn_small", 3000, ["regularization=shift"])])
def test_networks_learn_to_tell_the_shapes_apart_far_better_than_chance(project, tmp_path, model, train_size, more):
    config = configuration(
        *("data=shapeset", f"data.train={train_size}", "data.test=900", "data.val=300", f"model={model}", *more),
        *("epochs=4", "stats=off", "tracking=none"),
    )
    accuracy = train(config, tmp_path / "run").end["metrics"]["test/accuracy"]
    assert accuracy > 1 / 9 + 5 * (1 / 9 * 8 / 9 / 900) ** 0.5, "five standard errors above a guess"
