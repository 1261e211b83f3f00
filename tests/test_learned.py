"""Learned norms: the gradient quotient against closed forms, and what the norms are learned for."""

import pytest
import torch
import torch.nn.functional as F
from initialized import initialize, options_of
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from fanin import data, models
from fanin.errors import ConfigError
from fanin.initializers.learned import gradient_quotient
from fanin.randomness import Streams

STREAMS = Streams(seed=0, replicate=0)


def pictures(count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = data.prepare(data.load(data.digits, shape=[1, 8, 8], classes=10), scale="standard", device="cpu")
    return loaded.images[:count], loaded.labels[:count]


def mlp(**arguments) -> nn.Module:
    settings = dict(in_shape=(1, 8, 8), classes=10, widths=[64] * 4, activation="relu", norm="none", dropout=0.0)
    return models.Mlp(**settings | arguments)


def start(name: str, model: nn.Module, **changes) -> list:
    images, labels = pictures()
    return initialize(model, name, images=images, labels=labels, streams=STREAMS, **changes)


def normal(std: float) -> dict:
    return {"_target_": "fanin.initializers.normal", "mean": 0.0, "std": std}


def test_the_quotient_of_a_linear_loss_is_0_and_of_a_quadratic_one_its_curvature():
    theta = torch.linspace(0.5, 2, 12, dtype=torch.float64, requires_grad=True)
    assert gradient_quotient((3 * theta).sum(), [theta], eps=1e-9).item() == pytest.approx(0, abs=1e-8)
    for curvature in (0.01, 0.5, 3.0):  # g = c theta and H = c, so (g - H g) / g - 1 = -c
        loss = curvature * theta.square().sum() / 2
        assert gradient_quotient(loss, [theta], eps=1e-9).item() == pytest.approx(curvature, rel=1e-4)


def test_the_quotient_is_that_of_the_full_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    images, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    names = {name: parameter.shape for name, parameter in model.named_parameters()}

    def loss_at(flat):
        parts = flat.split([shape.numel() for shape in names.values()])
        theta = {name: part.view(shape) for (name, shape), part in zip(names.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, theta, images), labels)

    theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    h = hessian(loss_at, theta)
    [g] = torch.autograd.grad(loss_at(theta.requires_grad_()), theta)
    expected = ((g - h @ g) / (g + 1e-5 * torch.where(g >= 0, 1.0, -1.0)) - 1).abs().mean()
    found = gradient_quotient(F.cross_entropy(model(images), labels), list(model.parameters()), eps=1e-5)
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize(("std", "factor"), [(0.5, 2), (0.02, 1.5)])
def test_metainit_recovers_from_bad_norms(std, factor):
    steps = start("metainit", mlp(activation="tanh"), weight=normal(std), steps=150, batch_size=32)
    curve = [step.metrics["gradient_quotient"] for step in steps]
    assert [step.number for step in steps] == list(range(10, 151, 10))
    assert min(curve[-3:]) < curve[0] / factor


def step_loss(model: nn.Module, *, eta: float = 0.1) -> tuple[float, float]:
    """The loss after one normalised gradient step, on other images, and the gradient's norm."""
    images, labels = pictures()
    loss = F.cross_entropy(model(images[:300]), labels[:300])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= eta * gradient / norm
        return F.cross_entropy(model(images[300:]), labels[300:]).item(), norm.item()


def test_gradinit_makes_the_first_step_better_than_he_and_bounds_the_gradient():
    he, bad, learned = mlp(), mlp(), mlp()
    initialize(he, "he_normal", images=pictures()[0], labels=pictures()[1], streams=STREAMS)
    bad_weight = normal(0.3)
    initialize(bad, "normal", images=pictures()[0], labels=pictures()[1], streams=STREAMS, std=0.3)
    steps = start("gradinit", learned, weight=bad_weight, steps=200, lr=0.03)
    losses = {name: step_loss(model) for name, model in {"he": he, "bad": bad, "learned": learned}.items()}
    assert losses["learned"][0] < losses["he"][0] < losses["bad"][0]
    assert losses["learned"][1] < 1.5 < losses["bad"][1]
    assert steps[0].metrics["gradient_norm"] > 1 and "loss" in steps[-1].metrics


@pytest.mark.parametrize("name", ["metainit", "gradinit"])
def test_only_norms_are_learned_and_the_same_ones_every_time(name):
    first, again, plain = mlp(), mlp(), mlp()
    for seed, model in enumerate((first, again)):
        torch.manual_seed(seed)
        start(name, model, steps=5, batch_size=16)
    initialize(plain, "he_normal", images=pictures()[0], labels=pictures()[1], streams=STREAMS)
    for layer, same, before in zip(first.layers, again.layers, plain.layers, strict=True):
        assert torch.equal(layer.weight, same.weight)
        ratio = layer.weight.norm() / before.weight.norm()
        torch.testing.assert_close(layer.weight, ratio * before.weight)
        assert abs(ratio - 1) > 1e-3
    assert all(
        parameter.requires_grad and parameter.is_leaf and parameter.grad is None for parameter in first.parameters()
    )


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("name", ["metainit", "gradinit"])
def test_norm_layers_keep_no_trace_of_it(name, norm):
    model = mlp(norm=norm, dropout=0.5)
    start(name, model, steps=3, batch_size=16)
    assert model.training
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.num_batches_tracked == 0 and not module.running_mean.any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradinit_for_adam_bounds_the_1_norm():
    steps = start("gradinit", mlp(), update="adam", gamma=20.0, eta=0.003, steps=60, lr=0.05, batch_size=32)
    assert steps[0].metrics["gradient_norm"] > 20
    assert min(step.metrics["gradient_norm"] for step in steps) < 20


REFUSED = [
    ("metainit", {"steps": 0}, "initializer.steps: must be a whole number >= 1, got 0"),
    ("metainit", {"momentum": 1.0}, "initializer.momentum: must be a finite number >= 0 and < 1"),
    ("metainit", {"weight": "he"}, "initializer.weight: must be an initializer of one weight"),
    ("gradinit", {"update": "adamw"}, "initializer.update: 'adamw' is not one of: adam, sgd; did you mean 'adam'"),
    ("gradinit", {"gamma": 0}, "initializer.gamma: must be a finite number > 0"),
    ("gradinit", {"min_scale": 1.0}, "initializer.min_scale: must be a finite number > 0 and < 1"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_an_option_out_of_range_is_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        start(name, mlp(), **changes)


def test_the_files_in_conf_hold_the_papers_defaults():
    meta, grad_ = options_of("initializer", "metainit"), options_of("initializer", "gradinit")
    assert (meta["steps"], meta["lr"], meta["momentum"], meta["eps"]) == (500, 0.1, 0.9, 1e-5)
    assert (grad_["steps"], grad_["eta"], grad_["gamma"], grad_["min_scale"]) == (390, 0.1, 1.0, 0.01)


@pytest.mark.parametrize("name", ["metainit", "gradinit"])
def test_an_activation_without_second_derivative_is_refused(name):
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.activation = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 10)]), nn.Hardsigmoid()

        def forward(self, x):
            return self.layers[1](self.activation(self.layers[0](x.flatten(1))))

    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Hard()
        with pytest.raises(ConfigError, match=r"gradients of gradients.*hardsigmoid_backward is not implemented; take"):
            start(name, model)


@pytest.mark.parametrize("activation", models.activation.ACTIVATIONS)
def test_every_activation_of_ours_can_be_differentiated_often_enough(activation):
    for name in ("metainit", "gradinit"):
        model = mlp(activation=activation)
        start(name, model, steps=2, batch_size=8)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
