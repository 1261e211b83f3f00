"""The costly statistics against closed forms: quadratic losses, orthogonal networks, made-up gradients."""

import math

import pytest
import torch
from draws import generator
from torch import Tensor, nn
from trained import Listener, configuration, train

from fanin import meanfield
from fanin.run import Trainer
from fanin.stats import LayerStats
from fanin.stats.curvature import curvature, gradient_quotient, hessian, noise_scale, sharpness
from fanin.stats.geometry import correlations, effective_rank, jacobian_spectra

TRAINER = Trainer(threads=1)
FEW = ("data.n_train=300", "data.val=100", "tracking=none")


def linear_net(*, depth: int, width: int, orthogonal: bool) -> nn.Sequential:
    layers = [nn.Linear(width, width, bias=False).double() for _ in range(depth)]
    for number, layer in enumerate(layers):
        nn.init.normal_(layer.weight, std=width**-0.5, generator=generator(number))
        if orthogonal:
            layer.weight.data = torch.linalg.qr(layer.weight.data)[0]
    return nn.Sequential(*layers)


def test_the_sharpness_of_a_quadratic_loss_is_its_largest_eigenvalue_whatever_its_sign():
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator()).double())[0]
    for top in (7.0, -7.0):
        matrix = basis @ torch.diag(torch.cat([torch.tensor([top]), torch.linspace(-2, 3, 29)]).double()) @ basis.T
        a, b = (
            torch.randn(10, generator=generator(1)).double().requires_grad_(),
            torch.ones(20).double().requires_grad_(),
        )
        w = torch.cat([a, b])
        gradient, product = hessian(w @ matrix @ w / 2, [a, b])
        assert torch.allclose(gradient, matrix @ w) and torch.allclose(product(gradient), matrix @ gradient)
        assert sharpness(product, like=gradient, steps=40) == pytest.approx(top, rel=1e-6)
        expected = (matrix @ gradient / gradient).abs().mean().item()
        assert gradient_quotient(gradient, product(gradient)) == pytest.approx(expected, rel=1e-2)


def test_a_linear_loss_has_no_curvature():
    w = torch.randn(9, generator=generator()).double().requires_grad_()
    gradient, product = hessian(w @ torch.arange(9.0).double(), [w])
    assert sharpness(product, like=gradient) == gradient_quotient(gradient, product(gradient)) == 0


def test_the_noise_scale_of_gaussian_gradients_is_their_variance_over_their_squared_mean():
    mean, spread, size = torch.full((400,), 0.1), 0.5, 32
    noise = spread * torch.randn(2000, 400, generator=generator()) / size**0.5  # of batches of 32 images
    assert noise_scale(mean + noise, size=size) == pytest.approx(spread**2 / 0.1**2, rel=0.02)
    assert math.isnan(noise_scale(torch.tensor([[1.0], [-1.0]]), size=size))


def test_the_curvature_of_a_softmax_regression_is_that_of_its_explicit_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3, bias=False)).double()
    images, labels = torch.randn(64, 1, 1, 5, generator=generator()).double(), torch.arange(64) % 3
    found = curvature(model, images, labels)

    def loss(w: Tensor) -> Tensor:
        return nn.functional.cross_entropy(images.flatten(1) @ w.view(3, 5).T, labels)

    explicit = torch.autograd.functional.hessian(loss, model[1].weight.detach().flatten())
    assert found["curvature/sharpness"] == pytest.approx(torch.linalg.eigvalsh(explicit)[-1].item(), rel=5e-3)


@pytest.mark.parametrize("depth", [1, 8, 32])
def test_an_orthogonal_linear_network_has_singular_values_of_1(depth):
    images = torch.randn(3, 20, generator=generator(5)).double()
    spectra = jacobian_spectra(linear_net(depth=depth, width=20, orthogonal=True), images)
    assert spectra.shape == (3, 20) and torch.allclose(spectra, torch.ones(()).double())


def test_a_gaussian_layer_has_a_mean_singular_value_of_8_over_3_pi():
    images = torch.randn(1, 300, generator=generator(5)).double()
    spectra = jacobian_spectra(linear_net(depth=1, width=300, orthogonal=False), images)
    assert spectra.mean().item() == pytest.approx(8 / (3 * math.pi), rel=0.01)


RANKS = {
    "orthogonal": (torch.linalg.qr(torch.randn(12, 12, generator=generator()))[0], 12.0),
    "rank one": (torch.ones(5, 7), 1.0),
    "two to one": (torch.diag(torch.tensor([2.0, 1.0])), 3 / 2 ** (2 / 3)),
    "zeros": (torch.zeros(3, 4), 0.0),
}


@pytest.mark.parametrize(("matrix", "rank"), RANKS.values(), ids=RANKS)
def test_the_effective_rank_is_that_of_its_closed_form(matrix, rank):
    assert effective_rank(matrix.double()) == pytest.approx(rank, rel=1e-5)
    assert math.isnan(effective_rank(torch.full((2, 2), torch.nan)))


def test_correlations_follow_the_map_of_mean_field():
    base, others = torch.randn(1, 1500, generator=generator(1)), torch.randn(9, 1500, generator=generator(2))
    inputs = 0.5**0.5 * base + 0.5**0.5 * others  # pairs of cosine 0.5
    model = nn.Sequential(nn.Linear(1500, 1500, bias=False), nn.ReLU(), nn.Linear(1500, 1500, bias=False))
    for number in (0, 2):
        nn.init.kaiming_normal_(model[number].weight, generator=generator(3 + number))
    found = correlations(model, inputs)
    assert found["0"] == pytest.approx(0.5, abs=0.03)
    assert found["2"] == pytest.approx(meanfield.correlation_map(nn.ReLU(), 0.5, q=1.0, sigma_w2=2.0), abs=0.03)
    assert correlations(model, base.expand(4, -1))["2"] == pytest.approx(1)


def test_the_way_from_the_start_is_measured_from_the_weights_at_the_start():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    images, labels = torch.randn(8, 1, 2, 3, generator=generator()), torch.arange(8) % 4
    stats = LayerStats(model, images=images, labels=labels, level="full")
    found = stats.measure()
    assert (found["weight/1/init_distance"], found["weight/1/init_cosine"]) == pytest.approx((0, 1))
    with torch.no_grad():
        model[1].weight.mul_(-3)
    found = stats.measure()
    assert (found["weight/1/init_distance"], found["weight/1/init_cosine"]) == pytest.approx((4, -1))


@pytest.mark.parametrize("norm", ["batchnorm", "noisy_batchnorm"])
def test_statistics_of_any_cost_leave_the_weights_bitwise_equal(project, norm):
    states = []
    for level in ("off", "standard", "full"):
        overrides = [*FEW, "epochs=2", "model=mlp_narrow", f"regularization=[dropout,{norm}]", "optimizer=momentum"]
        train(configuration(*overrides, f"stats={level}"), project / level, trainer=TRAINER)
        states.append(torch.load(project / level / "artifacts" / "last.pt"))
    for state in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())


def test_a_resumed_run_goes_on_measuring_from_its_start(project):
    config = configuration(*FEW, "epochs=3", "stats=full", "model=mlp_narrow", "regularization=noisy_batchnorm")
    whole = train(config, project / "whole", trainer=TRAINER)
    train(config, project / "run", trainer=TRAINER, listener=Listener(stop_at=1), checkpoint=0)
    resumed = train(config, project / "run", trainer=TRAINER)
    key = "weight/layers.0/init_distance"
    distances = [[record["metrics"][key] for record in digest.epochs] for digest in (whole, resumed)]
    assert distances[0] == distances[1] and distances[0][0] == 0 < distances[0][1] < distances[0][3]
    key = "activation/layers.0/drift"
    drifts = [[record["metrics"].get(key) for record in digest.epochs] for digest in (whole, resumed)]
    assert drifts[0] == drifts[1] and drifts[0][0] is None and min(drifts[0][1:]) > 0


def test_broken_weights_are_measured_without_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    nn.init.constant_(model[1].weight, math.nan)
    images, labels = torch.randn(8, 1, 2, 3, generator=generator()), torch.arange(8) % 4
    found = LayerStats(model, images=images, labels=labels, level="full").measure()
    assert math.isnan(found["weight/1/effective_rank"]) and math.isnan(found["curvature/sharpness"])
