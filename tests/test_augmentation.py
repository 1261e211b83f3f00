"""What is done to the training images, against moves made by hand and the moments of their distributions."""

import math

import numpy as np
import pytest
import torch
from draws import generator
from torch import Tensor

from fanin import augmentation, regularizers
from fanin.augmentation import Augmentation, Mixture
from fanin.randomness import Streams

STREAMS = Streams(seed=0, replicate=0)
KINDS = {"rotate": 15.0, "shift": 2, "mixup": 0.5, "input_noise": 0.1, "input_dropout": 0.2}
CPU = torch.device("cpu")


def images(count: int = 50, shape: tuple[int, ...] = (2, 9, 7)) -> Tensor:
    return torch.rand(count, *shape, generator=generator(1))


def augment(*, streams: Streams = STREAMS, epoch: int = 1, **settings: float) -> Augmentation:
    chosen = regularizers.Regularizer(**{**vars(regularizers.NONE), **settings})  # type: ignore[arg-type]
    return Augmentation(chosen, streams=streams, epoch=epoch, device=CPU)


def test_a_shift_moves_whole_pixels_and_repeats_the_edge() -> None:
    x = images(200)
    moved = augmentation.shift(x, most=2, generator=generator())
    seen = set()
    for before, after in zip(x.numpy(), moved.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="edge")
        places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(padded[:, i : i + 9, j : j + 7], after)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25  # all of -2..2 along both sides


def test_a_quarter_turn_is_a_quarter_turn_and_no_turn_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    square = images(shape=(2, 8, 8))
    for share, expected in ((0.5, square), (0.75, square.rot90(1, (2, 3))), (0.25, square.rot90(-1, (2, 3)))):
        monkeypatch.setattr(torch, "rand", lambda n, generator, share=share: torch.full((n,), share))
        turned = augmentation.rotate(square, most=180, generator=generator())
        torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4)


def test_a_turn_of_an_oblong_image_keeps_distances_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = torch.zeros(1, 1, 21, 11)
    dot[0, 0, 10, 9] = 1.0  # 4 pixels right of the centre: after a quarter turn 4 pixels above or below it
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 0.75))
    turned = augmentation.rotate(dot, most=180, generator=generator())
    where = [int(i) for i in np.unravel_index(int(turned.argmax()), (21, 11))]
    assert where in ([6, 5], [14, 5]) and turned.max() > 0.99


def test_turns_are_within_their_bound_and_take_the_edge_for_what_lies_outside() -> None:
    flat = torch.full((20, 1, 8, 8), -0.42)
    torch.testing.assert_close(augmentation.rotate(flat, most=180, generator=generator()), flat)
    x = images(shape=(1, 28, 28))
    little, much = (augmentation.rotate(x, most=most, generator=generator()) for most in (1e-4, 30.0))
    torch.testing.assert_close(little, x, rtol=0, atol=1e-4)
    assert (much - x).abs().mean() > 0.1


def test_a_mixture_is_a_permutation_with_a_share_from_the_upper_half_of_beta() -> None:
    draws = np.random.default_rng(0)
    mixtures = [augmentation.draw_mixture(7, alpha=2.0, draws=draws, device=CPU) for _ in range(4000)]
    shares = np.array([mixture.share for mixture in mixtures])
    assert shares.min() >= 0.5 and shares.max() <= 1
    # |B - 1/2| of Beta(2, 2), density 6 b (1 - b), has mean 3/16.
    assert shares.mean() - 0.5 == pytest.approx(3 / 16, abs=5 * shares.std() / math.sqrt(len(shares)))
    for mixture in mixtures[:20]:
        assert sorted(mixture.partners.tolist()) == list(range(7))


def test_mixing_is_the_convex_combination_of_an_image_and_its_partner() -> None:
    x = images(4)
    mixed = augmentation.mix(x, Mixture(0.75, torch.tensor([2, 0, 3, 1])))
    torch.testing.assert_close(mixed[0], 0.75 * x[0] + 0.25 * x[2])
    torch.testing.assert_close(mixed[3], 0.75 * x[3] + 0.25 * x[1])


def test_noise_has_mean_0_and_the_std_asked_for() -> None:
    x = images(500)
    noise = augmentation.add_noise(x, std=0.3, generator=generator()) - x
    assert abs(noise.mean().item()) < 5 * 0.3 / math.sqrt(noise.numel())
    assert noise.std().item() == pytest.approx(0.3, rel=5 / math.sqrt(2 * noise.numel()))


def test_dropped_pixels_are_0_and_the_others_keep_the_mean() -> None:
    ones = torch.ones(500, 1, 10, 10)
    dropped = augmentation.drop_pixels(ones, p=0.2, generator=generator())
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.8]))
    assert (dropped == 0).double().mean().item() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / ones.numel()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_augmentation_is_a_function_of_replicate_and_epoch_and_not_of_the_others(kind: str) -> None:
    x = images()
    alone, again = (augment(**{kind: KINDS[kind]})(x)[0] for _ in range(2))
    assert torch.equal(alone, again) and not torch.equal(alone, x)
    assert not torch.equal(alone, augment(epoch=2, **{kind: KINDS[kind]})(x)[0])
    assert not torch.equal(alone, augment(streams=Streams(0, 1), **{kind: KINDS[kind]})(x)[0])
    one, all_kinds = augment(**{kind: KINDS[kind]}), augment(**KINDS)
    one(x), all_kinds(x)
    assert positions(one)[kind] == positions(all_kinds)[kind]


def positions(augmentation: Augmentation) -> dict[str, object]:
    """Where the stream of each kind stands."""
    steps = [*augmentation.moves, *augmentation.spoils]
    names = {"rotate": "rotate", "shift": "shift", "add_noise": "input_noise", "drop_pixels": "input_dropout"}
    found: dict[str, object] = {"mixup": str(augmentation.mixing.bit_generator.state)}
    for step in steps:
        found[names[step.func.__name__]] = step.keywords["generator"].get_state().tolist()  # type: ignore[attr-defined]
    return found


def test_augmentation_leaves_the_original_images_and_the_global_stream_alone() -> None:
    x = images()
    before, state = x.clone(), torch.get_rng_state()
    augment(**KINDS)(x)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_nothing_is_augmented_with_the_neutral_settings() -> None:
    assert augmentation.draw_augmentation(regularizers.NONE, streams=STREAMS, epoch=1, device=CPU) is None
    x = images()
    assert augment()(x) == (x, None)
