"""Mean field theory against its published numbers, closed forms and simulated networks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fanin import meanfield
from fanin.models.activation import ACTIVATIONS

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())
TANH = ORACLES["tanh_sb2_0.05"]
FUNCTIONS = {name: make() for name, make in ACTIVATIONS.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_second_moments_of_every_activation_and_its_slope_are_those_tabulated(name):
    found = meanfield.moments(FUNCTIONS[name], torch.ones(3))
    key = "leaky_relu_0.01" if name == "leaky_relu" else name
    assert found.square.tolist() == pytest.approx([ORACLES["E_phi2"][key]] * 3, abs=1e-5)
    assert found.slope.tolist() == pytest.approx([ORACLES["E_dphi2"][key]] * 3, abs=3e-5)
    assert meanfield.unit_gain(FUNCTIONS[name]) == pytest.approx(ORACLES["E_phi2"][key] ** -0.5, rel=2e-5)


def test_moments_of_a_shifted_gaussian_are_those_of_its_closed_forms():
    mean, std = torch.tensor([-2.0, 0.3, 5.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    density, below = normal.log_prob(mean / std).exp(), normal.cdf(mean / std)
    found = meanfield.moments(nn.ReLU(), mean**2 + std**2, mean=mean)
    assert torch.allclose(found.mean, mean * below + std * density, atol=1e-3)
    assert torch.allclose(found.square, (mean**2 + std**2) * below + mean * std * density, atol=1e-3)
    assert torch.allclose(found.slope, below, atol=0.02)  # a step between two nodes


@pytest.mark.parametrize("q", [1e-10, 1e-4, 1.0, 1e4, 1e10])
def test_extreme_lengths_are_integrated_as_well(q):
    relu, sign = (meanfield.length_map(phi, q, sigma_w2=1.0) for phi in (nn.ReLU(), nn.Hardtanh()))
    assert relu == pytest.approx(q / 2, rel=1e-12)
    normal = torch.distributions.Normal(0.0, 1.0)
    edge = torch.tensor(q).double() ** -0.5  # E[min(|x|, 1)^2] of x ~ N(0, q)
    inside = 2 * normal.cdf(edge) - 1 - 2 * edge * normal.log_prob(edge).exp()
    assert sign == pytest.approx(float(q * inside + 2 * (1 - normal.cdf(edge))), rel=0.02)


def test_tanh_is_critical_at_1_761():
    assert meanfield.critical_sigma_w2(torch.tanh, sigma_b2=0.05) == pytest.approx(1.761, abs=0.005)
    assert meanfield.critical_sigma_w2(torch.tanh, sigma_b2=0.05) == pytest.approx(TANH["critical_sw2"], abs=2e-5)
    critical = meanfield.fixed_point(torch.tanh, sigma_w2=TANH["critical_sw2"], sigma_b2=0.05)
    assert critical.q == pytest.approx(TANH["q_star_at_critical"], abs=1e-4)
    assert critical.chi_1 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("row", TANH["rows"], ids=lambda row: f"sigma_w2 {row[0]}")
def test_lengths_correlations_and_depth_scales_of_tanh_are_those_tabulated(row):
    sigma_w2, q, chi_1, c, xi_c = row
    found = meanfield.fixed_point(torch.tanh, sigma_w2=sigma_w2, sigma_b2=0.05)
    assert (found.q, found.chi_1, found.c) == pytest.approx((q, chi_1, c), abs=2e-4)
    assert found.xi_c == pytest.approx(xi_c, abs=0.051)


def test_the_length_converges_over_layers_as_its_depth_scale_says():
    scales = {"sigma_w2": 1.5, "sigma_b2": 0.05}
    limit = meanfield.fixed_point(torch.tanh, **scales)
    q, distances = 1.0, []
    for _ in range(12):
        q = meanfield.length_map(torch.tanh, q, **scales)
        distances.append(abs(q - limit.q))
    assert -1 / math.log(distances[-1] / distances[-2]) == pytest.approx(limit.xi_q, rel=1e-3)


def test_a_relu_under_he_keeps_every_length_and_makes_inputs_alike():
    relu, c = nn.ReLU(), 0.3
    assert meanfield.critical_sigma_w2(relu) == pytest.approx(2)
    for depth in range(1, 101):
        c = meanfield.correlation_map(relu, c, q=1.0, sigma_w2=2.0)
        if str(depth) in ORACLES["relu_corr_map_from_0.3"]:
            assert c == pytest.approx(ORACLES["relu_corr_map_from_0.3"][str(depth)], abs=1e-5)
    limit = meanfield.fixed_point(relu, sigma_w2=2.0)
    assert limit.c == 1 and limit.xi_q == math.inf and limit.q == 1


def test_a_relu_is_critical_at_no_other_point():
    with pytest.raises(ValueError, match=r"no sigma_w is critical at sigma_b\^2 = 0.05"):
        meanfield.critical_sigma_w2(nn.ReLU(), sigma_b2=0.05)
    assert meanfield.fixed_point(nn.ReLU(), sigma_w2=1.9).q == 0
    assert meanfield.fixed_point(nn.ReLU(), sigma_w2=2.1).q == math.inf


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"gelu", "silu"}))  # whose length flows away from the edge
def test_on_the_edge_of_chaos_the_gradient_keeps_its_length(name):
    sigma_b2 = 0.0 if name in ("linear", "relu", "leaky_relu") else 0.05
    sigma_w2 = meanfield.critical_sigma_w2(FUNCTIONS[name], sigma_b2=sigma_b2)
    assert meanfield.fixed_point(FUNCTIONS[name], sigma_w2=sigma_w2, sigma_b2=sigma_b2).chi_1 == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize("keep", [0.5, 0.7])
def test_dropout_moves_the_critical_scale_of_a_relu_to_twice_keep(keep):
    relu = nn.ReLU()
    assert meanfield.length_map(relu, 3.0, sigma_w2=2 * keep, keep=keep) == pytest.approx(3)
    assert meanfield.gradient_gain(relu, 3.0, sigma_w2=2.0, keep=keep) == pytest.approx(1 / keep)
    noisy = meanfield.fixed_point(torch.tanh, sigma_w2=TANH["critical_sw2"], sigma_b2=0.05, keep=keep)
    assert noisy.c < 0.9 and noisy.xi_c < 20  # it removes the critical point: no depth is trainable


def test_batch_norm_makes_relu_gradients_grow_by_1_467_a_layer():
    grown = meanfield.batch_norm_gain(nn.ReLU())
    assert grown == pytest.approx(math.pi / (math.pi - 1)) == pytest.approx(ORACLES["bn_relu_bwd_sq_gain"])
    assert meanfield.batch_norm_gain(FUNCTIONS["linear"]) == pytest.approx(1)


@pytest.mark.parametrize(("width", "depth"), [(100, 30), (50, 20)])
def test_the_median_length_of_a_narrow_relu_network_shrinks_as_predicted(width, depth):
    draw = torch.Generator().manual_seed(width)
    x = torch.ones(600, width, 1)
    for _ in range(depth):
        weight = torch.randn(len(x), width, width, generator=draw) * (2 / width) ** 0.5
        x = (weight @ x).relu()
    q = x.square().mean((1, 2))
    assert q.log().median().item() == pytest.approx(meanfield.relu_shift(depth=depth, width=width), abs=0.15)


@pytest.mark.parametrize("name", ["tanh", "selu", "gelu"])
def test_the_correlation_of_two_inputs_follows_its_map_in_a_wide_network(name):
    phi, draw = FUNCTIONS[name], torch.Generator().manual_seed(3)
    base, other = torch.randn(2, 4000, generator=draw)
    z = torch.stack([base, 0.6 * base + 0.8 * other])
    expected = meanfield.correlation_map(phi, 0.6, q=1.0, sigma_w2=1.5, sigma_b2=0.1)
    weight = torch.randn(4000, 4000, generator=draw) * (1.5 / 4000) ** 0.5
    after = phi(z) @ weight.T + 0.1**0.5 * torch.randn(4000, generator=draw)
    assert (after[0] @ after[1] / 4000).item() == pytest.approx(expected, rel=0.06)
