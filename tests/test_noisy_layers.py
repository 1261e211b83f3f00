"""Layers that draw random numbers in training: dropout, stochastic depth, noisy batch norm; and their streams."""

import math

import pytest
import torch
from architectures import STREAMS, build, images
from torch import Tensor, nn

from fanin import models
from fanin.models.dropout import Dropout, StochasticDepth
from fanin.models.norm import NoisyBatchNorm2d, disturb
from fanin.randomness import Streams


def seeded(p: float, *, seed: int = 0, replicate: int = 0) -> Dropout:
    module = Dropout(p)
    models.seed_noise(module, Streams(seed, replicate))
    return module


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_zeroes_a_share_p_of_the_units_and_scales_up_the_others(p):
    dropped = seeded(p)(torch.ones(1000, 100))
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 1e5)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - p)]))


def test_dropped_units_are_independent_of_each_other():
    kept = (seeded(0.5)(torch.ones(4000, 50)) != 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(50)
    assert correlations.abs().max() < 5 / math.sqrt(4000)


def test_dropout_masks_the_gradient_like_the_output():
    x = torch.full((100, 100), 2.0, requires_grad=True)
    output = seeded(0.3)(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, output.detach() / 2)


def test_dropout_does_nothing_in_evaluation_or_with_p_0():
    x = images()
    assert seeded(0.5).eval()(x) is x
    assert seeded(0.0)(x) is x


def test_dropout_keeps_the_type_of_its_input():
    assert seeded(0.5)(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_masks_depend_on_seed_replicate_and_path_and_on_nothing_else():
    def masks(model: nn.Module, streams: Streams, *, disturb: int = 0) -> list[Tensor]:
        models.seed_noise(model, streams)
        torch.rand(disturb)
        return [dropout(torch.ones(64, 256)) for dropout in model.dropouts]

    relu, tanh = build("mlp", dropout=0.5), build("mlp", dropout=0.5, activation="tanh", norm="batch")
    first, second = masks(relu, STREAMS)
    for found, expected in zip(masks(tanh, STREAMS, disturb=3), (first, second), strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(first, second)
    assert not torch.equal(first, masks(relu, Streams(seed=0, replicate=1))[0])
    assert not torch.equal(first, masks(relu, Streams(seed=1, replicate=0))[0])


def test_dropout_neither_uses_nor_moves_the_global_random_stream():
    module, before = seeded(0.5), torch.random.get_rng_state()
    module(torch.ones(100))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_streams_of_dropout_continue_where_their_state_was_taken():
    model, other = build("mlp", dropout=0.5), build("mlp", dropout=0.5)
    other.load_state_dict(model.state_dict())
    models.seed_noise(model, STREAMS)
    models.seed_noise(other, STREAMS)
    model(images())
    state = models.noise_state(model)
    assert sorted(state) == ["dropouts.0", "dropouts.1"]
    expected = model(images())
    for _ in range(3):
        other(images())
    assert not torch.equal(other(images()), expected)
    models.load_noise_state(other, state)
    assert torch.equal(other(images()), expected)


def test_noisy_batch_norm_is_batch_norm_in_evaluation_and_without_noise():
    plain, noisy = nn.BatchNorm2d(6), NoisyBatchNorm2d(6, noise=1.0)
    x = images(shape=(6, 5, 5))
    for module in (plain, noisy):
        module.train()(2 * x)
    assert torch.equal(plain.eval()(x), noisy.eval()(x))
    assert torch.equal(plain.train()(x), NoisyBatchNorm2d(6, noise=0.0)(x))


def test_the_noise_of_noisy_batch_norm_has_the_moments_of_its_definition():
    """y = s x + m at x = 0 and x = 1: unit j has E m = mu_j ~ U(-.5, .5), E s = sigma_j ~ U(1, 1.25)."""
    zeros, ones = (
        disturb(torch.full((4000, 200), value), strength=1.0, generator=torch.Generator().manual_seed(3)).double()
        for value in (0.0, 1.0)
    )
    mean, scale = zeros.mean(0), (ones - zeros).mean(0)  # equal draws: the difference is s
    assert mean.abs().max() < 0.52 and 0.98 < scale.min() and scale.max() < 1.27
    assert abs(mean.mean()) < 5 * math.sqrt(1 / 12 / 200)
    assert mean.var().item() == pytest.approx(1 / 12, rel=0.35)
    assert scale.mean().item() == pytest.approx(1.125, abs=5 * 0.25 / math.sqrt(12 * 200))
    torch.testing.assert_close(zeros.std(0), torch.full((200,), 0.2 / math.sqrt(12)).double(), rtol=0.08, atol=0)
    torch.testing.assert_close((ones - zeros).std(0), torch.full((200,), 0.1).double(), rtol=0.08, atol=0)


def test_the_noise_of_a_norm_has_streams_of_its_own_and_leaves_those_of_dropout_alone():
    def masks(**settings) -> list[Tensor]:
        model = build("mlp", dropout=0.5, **settings)
        models.seed_noise(model, STREAMS)
        model(images())
        return [dropout(torch.ones(8, 256)) for dropout in model.dropouts]

    noisy = masks(norm="noisy_batch", norm_noise=1.0)
    assert all(torch.equal(a, b) for a, b in zip(masks(norm="batch"), noisy, strict=True))
    model = build("mlp", norm="noisy_batch", norm_noise=1.0)
    models.seed_noise(model, STREAMS)
    before = torch.random.get_rng_state()
    first = model(images())
    assert sorted(models.noise_state(model)) == ["dropouts.0", "dropouts.1", "norms.0", "norms.1"]
    assert torch.equal(torch.random.get_rng_state(), before)
    models.seed_noise(model, STREAMS)
    assert torch.equal(model(images()), first)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    module = StochasticDepth(0.3)
    models.seed_noise(module, STREAMS)
    dropped = module(torch.ones(20_000, 3, 2, 2)).flatten(1)
    assert torch.equal(dropped.amin(1), dropped.amax(1))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.7]))
    assert (dropped[:, 0] == 0).double().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))
    assert torch.equal(module.eval()(images()), images())
