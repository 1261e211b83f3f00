"""The machine against brute force: everything a small one claims can be added up over all its states."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from draws import generator
from torch import Tensor

from fanin import data
from fanin.initializers import rbm

RULE = rbm.Rule(k=1, lr=0.1, momentum=0.5, final_momentum=0.9, switch_epoch=5, weight_cost=2e-4, batch_size=100)


def machine(visible: str = "binary", *, units: int = 4, pixels: int = 5, scale: float = 0.7) -> rbm.Rbm:
    draw = generator(7)
    weight, below, above = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((units, pixels), (pixels,), (units,))
    )
    return rbm.Rbm(scale * weight, scale * below, scale * above, visible)


def states(count: int) -> Tensor:
    return torch.tensor(list(product([0, 1], repeat=count)), dtype=torch.float64)


def energies(m: rbm.Rbm, visible: Tensor, hidden: Tensor) -> Tensor:
    """E(v, h) of every pair, straight from its definition: (N visible states, N hidden states)."""
    own = -(visible @ m.visible_bias) if m.visible == "binary" else (visible - m.visible_bias).square().sum(1) / 2
    return own[:, None] - hidden @ m.hidden_bias - visible @ m.weight.T @ hidden.T


@pytest.mark.parametrize("visible", rbm.VISIBLE)
def test_free_energy_is_the_sum_over_all_hidden_states(visible):
    m = machine(visible)
    images = states(5) if visible == "binary" else torch.randn(20, 5, generator=generator(), dtype=torch.float64)
    expected = -torch.logsumexp(-energies(m, images, states(4)), 1)
    torch.testing.assert_close(rbm.free_energy(m, images), expected)


@pytest.mark.parametrize("visible", rbm.VISIBLE)
def test_hidden_means_are_those_of_the_boltzmann_distribution(visible):
    m, images = machine(visible), torch.rand(10, 5, generator=generator(), dtype=torch.float64)
    weights = torch.softmax(-energies(m, images, states(4)), 1)
    torch.testing.assert_close(rbm.hidden_mean(m, images), weights @ states(4))


def test_visible_means_are_those_of_the_boltzmann_distribution():
    m, hidden = machine(), states(4)
    weights = torch.softmax(-energies(m, states(5), hidden), 0)
    torch.testing.assert_close(rbm.visible_mean(m, hidden), weights.T @ states(5))
    gaussian = machine("gaussian")
    mean = rbm.visible_mean(gaussian, hidden).requires_grad_()
    slopes = torch.autograd.grad(energies(gaussian, mean, hidden).diagonal().sum(), mean)[0]
    torch.testing.assert_close(slopes, torch.zeros_like(slopes), atol=1e-12, rtol=0)  # the density's only peak


def log_likelihood(m: rbm.Rbm, images: Tensor) -> Tensor:
    pixels, units = len(m.visible_bias), len(m.hidden_bias)
    log_z = torch.logsumexp(-energies(m, states(pixels), states(units)).flatten(), 0)
    return (torch.logsumexp(-energies(m, images, states(units)), 1) - log_z).mean()


def exact(m: rbm.Rbm, images: Tensor) -> Tensor:
    """The gradient of the mean log-likelihood by all parameters in a row: autograd on the sum over all states."""
    parameters = [p.clone().requires_grad_() for p in (m.weight, m.visible_bias, m.hidden_bias)]
    found = torch.autograd.grad(log_likelihood(rbm.Rbm(*parameters, "binary"), images), parameters)
    return torch.cat([part.flatten() for part in found])


def estimated(m: rbm.Rbm, images: Tensor, *, k: int, copies: int = 4000) -> Tensor:
    """CD-k's mean over many chains from each image."""
    found = rbm.contrastive_divergence(m, images.repeat(copies, 1), k=k, generator=generator(3))
    return torch.cat([part.flatten() for part in (found.weight, found.visible_bias, found.hidden_bias)])


def test_contrastive_divergence_points_uphill_and_with_k_to_the_exact_gradient():
    m, images = machine(), states(5)[[0, 3, 9, 17, 30]]
    truth = exact(m, images)
    cosines, errors = [], []
    for k in (1, 3, 40):
        found = estimated(m, images, k=k)
        cosines.append(torch.cosine_similarity(found, truth, dim=0).item())
        errors.append(((found - truth).norm() / truth.norm()).item())
    assert cosines[0] > 0.8 and cosines[2] > 0.999
    assert errors[2] < 0.03 < errors[0]  # CD-1 is biased, a long chain is not
    assert errors[0] > errors[1] > errors[2]


def test_chains_that_start_in_the_models_own_distribution_have_no_gradient():
    m = machine()
    shares = torch.softmax(-rbm.free_energy(m, states(5)), 0)
    images = states(5)[torch.multinomial(shares, 200_000, replacement=True, generator=generator(4))]
    found = rbm.contrastive_divergence(m, images, k=1, generator=generator(5))
    assert max(part.abs().max() for part in (found.weight, found.visible_bias, found.hidden_bias)) < 0.01
    assert found.error == pytest.approx(images.var(0, correction=0).mean().item(), rel=0.5)


def test_gaussian_units_are_drawn_with_variance_1_around_their_mean():
    m = machine("gaussian")
    drawn = rbm.draw_normal(rbm.visible_mean(m, states(4)[[5]].expand(100_000, -1)), generator())
    torch.testing.assert_close(drawn.var(0), torch.ones(5, dtype=torch.float64), rtol=0.03, atol=0)


def test_training_by_long_chains_climbs_the_exact_likelihood():
    images = states(5)[[1, 2, 4, 8, 16]].repeat(40, 1)  # one pixel in five is on
    m = rbm.start(machine(scale=0.01).weight, images, visible="binary")
    before = log_likelihood(m, images).item()
    rule = replace(RULE, k=5, lr=0.2, weight_cost=0.0, batch_size=50)
    for _ in rbm.train(m, images, images, rule=rule, epochs=200, generator=generator()):
        pass
    # The best a machine can do is to give each of the five images a fifth: log(1/5) = -1.61.
    assert before < -2.4 and -2.1 < log_likelihood(m, images).item() < -1.6


def test_the_visible_biases_start_from_the_images_means_and_no_pixel_needs_an_infinite_one():
    images = torch.tensor([[0.0, 1.0, 1.0, 0.5]] * 3 + [[0.0, 1.0, 0.0, 0.5]])
    m = rbm.start(torch.zeros(2, 4), images, visible="binary")
    expected = torch.tensor([0.5, 4.5, 3.5, 2.5]) / 5
    torch.testing.assert_close(rbm.visible_mean(m, torch.ones(1, 2))[0], expected)
    assert rbm.start(torch.zeros(2, 4), images, visible="gaussian").visible_bias.tolist() == [0, 1, 0.75, 0.5]


def test_a_step_is_momentum_and_rate_times_the_gradient_less_the_weight_cost():
    images = states(5)[[0, 3, 9, 17, 30]].repeat(2, 1)
    rule = replace(RULE, batch_size=10, switch_epoch=1, lr=0.25, momentum=0.5, final_momentum=0.8, weight_cost=0.1)
    m, copy = machine(), machine()
    list(rbm.train(m, images, images, rule=rule, epochs=3, generator=generator()))
    draw, velocity = generator(), [torch.zeros(4, 5), torch.zeros(5), torch.zeros(4)]
    for momentum in (0.5, 0.8, 0.8):
        order = torch.randperm(10, generator=draw)
        found = rbm.contrastive_divergence(copy, images[order], k=1, generator=draw)
        slopes = [found.weight - 0.1 * copy.weight, found.visible_bias, found.hidden_bias]
        velocity = [momentum * old + 0.25 * slope for old, slope in zip(velocity, slopes, strict=True)]
        moved = [
            old + step for old, step in zip((copy.weight, copy.visible_bias, copy.hidden_bias), velocity, strict=True)
        ]
        copy = rbm.Rbm(*moved, "binary")
    for name in ("weight", "visible_bias", "hidden_bias"):
        torch.testing.assert_close(getattr(m, name), getattr(copy, name))


@cache
def digits(scale: str = "unit") -> Tensor:
    loaded = data.load(data.mnist_5k, shape=[1, 28, 28], classes=10)
    images = data.prepare(loaded, scale=scale, device="cpu").images.flatten(1)
    return images[torch.randperm(len(images), generator=generator())[:1500]]  # they are sorted by class


@pytest.mark.parametrize(
    ("visible", "scale", "lr", "left"), [("binary", "unit", 0.1, 0.8), ("gaussian", "standard", 0.001, 0.9)]
)
def test_on_digits_the_reconstruction_error_falls_epoch_by_epoch(visible, scale, lr, left):
    images = digits(scale)
    weight = 0.01 * torch.randn(64, 784, generator=generator(1))
    m = rbm.start(weight, images, visible=visible)
    epochs = list(
        rbm.train(
            m, images[300:], images[:300], rule=replace(RULE, lr=lr, batch_size=50), epochs=6, generator=generator()
        )
    )
    errors = [epoch.reconstruction_error for epoch in epochs]
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    without = images.var(0).mean()  # what a machine without weights gets wrong: the pixels' own variance
    assert errors[-1] < left * without < errors[0]


def test_learning_by_heart_drives_the_free_energy_gap_down():
    images = digits()
    gaps = {}
    for count in (20, 1200):
        m = rbm.start(0.01 * torch.randn(128, 784, generator=generator(1)), images[:count], visible="binary")
        rule = replace(RULE, batch_size=20, weight_cost=0.0)
        steps = rbm.train(m, images[:count], images[1200:], rule=rule, epochs=1200 // count, generator=generator())
        gaps[count] = [epoch.free_energy_gap for epoch in steps][-1]
    assert gaps[20] < -10 < gaps[1200] < 3
