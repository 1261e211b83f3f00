import time

import numpy as np
import pytest
import torch

from fanin.pictures import BLUE, RED, confusion_matrix, draw_confusion, draw_samples


def has_color(picture, color):
    return bool((np.asarray(picture) == color).all(axis=-1).any())


def test_confusion_matrix_counts_rows_of_truth_and_columns_of_predictions():
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 2, 2, 2]), [0, 1, 1, 0, 2, 2], classes=3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_confusion_matrix_keeps_classes_that_never_occur():
    assert confusion_matrix([0], [0], classes=4).sum(axis=1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("predicted", [[0, 3], [0, -1]])
def test_a_prediction_outside_the_classes_is_our_own_bug(predicted):
    with pytest.raises(AssertionError):
        confusion_matrix([2, 0], predicted, classes=3)


def test_perfect_predictions_are_drawn_without_red_and_total_confusion_without_blue():
    perfect = draw_confusion(np.diag([5, 7, 9]))
    assert has_color(perfect, BLUE) and not has_color(perfect, RED)
    confused = draw_confusion(np.array([[0, 4], [8, 0]]))
    assert has_color(confused, RED) and not has_color(confused, BLUE)


def test_cells_are_shaded_by_their_share_of_the_row_not_by_their_count():
    rare, common = (np.asarray(draw_confusion(np.array([[scale, 0], [0, 1000]])))[70, 70] for scale in (2, 500))
    assert tuple(rare) == tuple(common) == BLUE  # both rows are all right


def test_the_row_is_the_true_class():
    pixels = np.asarray(draw_confusion(np.array([[1, 0], [6, 0]])))  # class 1 always taken for 0
    lower_left, upper_right = pixels[64 + 44, 64 + 4], pixels[64 + 4, 64 + 44]
    assert tuple(lower_left) == RED and tuple(upper_right) == (255, 255, 255)


@pytest.mark.parametrize("classes", [2, 10, 26, 300])
def test_confusions_of_few_and_many_classes_stay_of_a_size_to_look_at(classes):
    picture = draw_confusion(np.eye(classes, dtype=np.int64) * 100_000)
    assert 100 < picture.height < 1000 and 300 < picture.width < 1000


def test_an_empty_confusion_is_drawn():
    assert not has_color(draw_confusion(np.zeros((3, 3), dtype=np.int64)), BLUE)


def frames(picture):
    """For each sample of the only row, whether its frame is red."""
    pixels = np.asarray(picture)
    return [tuple(pixels[34 + 32, 12 + 76 * place - 1]) == RED for place in range((picture.width - 12) // 76)]


def test_wrong_samples_come_first_and_have_a_red_frame():
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    picture = draw_samples(images, [0, 1, 2, 3, 4, 5], torch.tensor([0, 1, 2, 9, 4, 9]), count=6)
    assert frames(picture) == [True, True, False, False, False, False]


def test_samples_are_picked_from_the_whole_test_set():
    images = torch.zeros(100, 1, 28, 28)
    images[50:] = 1.0
    pixels = np.asarray(draw_samples(images, [0] * 100, [0] * 100, count=4))
    assert [int(pixels[34 + 32, 12 + 76 * place + 32, 0]) for place in range(4)] == [0, 0, 255, 255]


@pytest.mark.parametrize("low,high", [(0, 1), (-0.42, 2.8), (0, 255)])
def test_samples_look_the_same_on_every_pixel_scale(low, high):
    unit = (torch.arange(2 * 784) % 2).float().view(2, 1, 28, 28)
    expected = draw_samples(unit, [0, 1], [0, 1], count=2)
    scaled = draw_samples(low + unit * (high - low), [0, 1], [0, 1], count=2)
    assert np.array_equal(np.asarray(scaled), np.asarray(expected))


def test_color_images_keep_their_colors():
    green = torch.zeros(2, 3, 32, 32)
    green[:, 1] = 1
    assert has_color(draw_samples(green, [0, 1], [0, 0], count=2), (0, 255, 0))


@pytest.mark.parametrize("count,rows", [(1, 1), (10, 1), (11, 2), (500, 3)])
def test_the_grid_has_at_most_ten_columns_and_no_more_samples_than_there_are(count, rows):
    picture = draw_samples(torch.rand(25, 1, 8, 8), [1] * 25, [1] * 25, count=count)
    assert picture.height == 40 + rows * 94
    assert picture.width <= 12 + 10 * 76


def test_both_pictures_together_cost_little_time():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 10, (2, 10_000))
    images = torch.rand(10_000, 1, 28, 28)
    seconds = []
    for _ in range(5):  # the first one loads the font
        start = time.process_time()
        draw_confusion(confusion_matrix(truth, predicted, classes=10))
        draw_samples(images, truth, predicted, count=40)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.06  # 10 ms at rest
