"""Statistics against closed forms, the singular value decomposition, and hand-written forward passes."""

import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from draws import generator
from tiny import IMAGES, LABELS, make_mlp
from torch import Tensor, nn

from fanin import models, spectrum
from fanin.models.mlp import Mlp
from fanin.stats import LayerStats, transfer


def measure(model: nn.Module, images: Tensor = IMAGES, labels: Tensor = LABELS) -> dict[str, float]:
    return LayerStats(model, images=images, labels=labels).measure()


def test_weight_statistics_equal_their_definitions() -> None:
    model = make_mlp()
    with torch.no_grad():
        model.layers[1].weight[:3] = 0
    found = measure(model)
    for index, layer in enumerate(model.layers):
        weight = layer.weight.detach().double()
        values = torch.linalg.svdvals(weight)
        expected = {
            "mean": weight.mean(),
            "std": weight.std(correction=0),
            "absmax": weight.abs().max(),
            "norm": values.square().sum().sqrt(),
            "spectral_norm": values[0],
            "row_spread": (weight - weight.mean(0)).norm(dim=1).max() / weight.mean(0).norm(),
            "stable_rank": (values.square().sum() / values[0].square()),
            "sparsity": (weight == 0).double().mean(),
        }
        for name, value in expected.items():
            assert found[f"weight/layers.{index}/{name}"] == pytest.approx(value.item(), rel=1e-6, abs=1e-12)


def test_convolutions_are_measured_as_matrices_of_units_by_fan_in() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    found = measure(model)
    values = torch.linalg.svdvals(model[0].weight.detach().reshape(6, 9).double())
    assert found["weight/0/spectral_norm"] == pytest.approx(values[0].item(), rel=1e-6)
    assert found["weight/0/norm"] == pytest.approx(values.norm().item(), rel=1e-6)


MATRICES = {
    "gaussian wide": torch.randn(256, 784, generator=generator()),
    "gaussian square": torch.randn(512, 512, generator=generator()),
    "gaussian large": torch.randn(1024, 1024, generator=generator()),
    "gaussian tall": torch.randn(300, 40, generator=generator()),
    "all positive": torch.rand(200, 300, generator=generator()),
    "orthogonal": torch.linalg.qr(torch.randn(100, 100, generator=generator()))[0],
    "constant, rank 1": torch.full((256, 784), 0.3),
    "identity": torch.eye(70),
    "one row": torch.randn(1, 9, generator=generator()),
    "one column": torch.randn(9, 1, generator=generator()),
    "two equal tops": torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.5])),
    "tiny": torch.randn(64, 64, generator=generator()) * 1e-30,
    "huge": torch.randn(64, 64, generator=generator()) * 1e30,
    "of the largest floats": torch.rand(64, 90, generator=generator()) * 3.4e38,
    "of the largest floats, of both signs": (torch.rand(64, 90, generator=generator()) * 2 - 1) * 3.4e38,
    "of the largest floats, small": (torch.rand(9, 8, generator=generator()) * 2 - 1) * 3.4e38,
    "ill-conditioned": torch.diag(10.0 ** -torch.arange(12)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_spectral_norm_is_the_largest_singular_value(name: str) -> None:
    matrix = MATRICES[name]
    largest = torch.linalg.svdvals(matrix.double())[0].item()
    assert spectrum.spectral_norm(matrix) == pytest.approx(largest, rel=1e-5)
    assert spectrum.finish(spectrum.gram(matrix)) == pytest.approx(largest, rel=1e-5)  # as from an accelerator


def test_the_spectral_norm_of_nothing_is_0_and_of_infinities_nan() -> None:
    assert spectrum.spectral_norm(torch.zeros(5, 7)) == 0
    assert spectrum.finish(spectrum.gram(torch.zeros(5, 7))) == 0
    for value in (torch.nan, torch.inf):
        matrix = torch.eye(50, 60)
        matrix[3, 50] = value
        assert math.isnan(spectrum.spectral_norm(matrix)) and math.isnan(spectrum.finish(spectrum.gram(matrix)))


def test_a_gaussian_matrix_has_the_spectral_norm_and_stable_rank_of_theory() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 256))
    nn.init.normal_(model[1].weight, std=784**-0.5, generator=generator(3))
    found = measure(model, torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long))
    edge = 1 + (256 / 784) ** 0.5  # Marchenko & Pastur 1967: (sqrt m + sqrt n) / sqrt n
    assert found["weight/1/spectral_norm"] == pytest.approx(edge, rel=0.02)
    assert found["weight/1/stable_rank"] == pytest.approx(256 / edge**2, rel=0.04)


def test_gradient_norms_are_those_of_autograd_in_eval_mode() -> None:
    model = make_mlp(norm="batch")
    found = measure(model)
    model.eval()
    F.cross_entropy(model(IMAGES), LABELS).backward()
    for index, layer in enumerate(model.layers):
        assert found[f"grad/layers.{index}/norm"] == pytest.approx(layer.weight.grad.norm().item(), rel=1e-5)


def test_measuring_leaves_the_gradients_of_training_alone() -> None:
    model = make_mlp()
    F.cross_entropy(model.eval()(IMAGES[:8]), LABELS[:8]).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    measure(model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert all(not module._forward_hooks for module in model.modules())


def test_measuring_leaves_weights_alone_in_whatever_precision() -> None:
    for dtype in (torch.float32, torch.float64):
        model = make_mlp().to(dtype)
        before = [parameter.clone() for parameter in model.parameters()]
        measure(model, IMAGES.to(dtype))
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_the_update_ratio_of_a_gradient_step_is_lr_times_gradient_over_weights() -> None:
    model = make_mlp().double()
    stats = LayerStats(model, images=IMAGES.double(), labels=LABELS)
    assert not any(key.startswith("update/") for key in stats.measure())
    F.cross_entropy(model.eval()(IMAGES.double()), LABELS).backward()
    before = [layer.weight.detach().clone() for layer in model.layers]
    stats.remember()
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    found = stats.measure()
    for index, (layer, weight) in enumerate(zip(model.layers, before, strict=True)):
        expected = 0.3 * layer.weight.grad.norm() / weight.norm()
        assert found[f"update/layers.{index}/ratio"] == pytest.approx(expected.item(), rel=1e-9)
    assert not any(key.startswith("update/") for key in stats.measure())  # told once


def test_adams_first_step_moves_every_weight_by_lr() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    stats = LayerStats(model, images=IMAGES, labels=LABELS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    F.cross_entropy(model(IMAGES), LABELS).backward()
    norm = model[1].weight.norm().item()
    stats.remember()
    optimizer.step()
    assert stats.measure()["update/1/ratio"] == pytest.approx(1e-3 * 60**0.5 / norm, rel=1e-3)


def test_activation_statistics_equal_a_forward_pass_by_hand() -> None:
    model = make_mlp("relu")
    with torch.no_grad():
        model.layers[0].bias[:5] = -100  # five units that never fire
    found = measure(model)
    first = F.relu(F.linear(IMAGES.flatten(1), model.layers[0].weight, model.layers[0].bias)).double()
    second = F.relu(F.linear(first.float(), model.layers[1].weight, model.layers[1].bias)).double()
    for index, hidden in enumerate((first, second)):
        path = f"activation/layers.{index}"
        assert found[f"{path}/mean"] == pytest.approx(hidden.mean().item(), rel=1e-6)
        assert found[f"{path}/std"] == pytest.approx(hidden.std(correction=0).item(), rel=1e-6)
        assert found[f"{path}/dead"] == (hidden.amax(0) == 0).double().mean().item()
    assert found["activation/layers.0/dead"] >= 5 / 12
    assert "activation/layers.2/mean" not in found  # logits have no activation


@pytest.mark.parametrize("activation", sorted(models.activation.ACTIVATIONS))
def test_every_activation_is_found_and_only_relu_has_dead_units(activation: str) -> None:
    model = make_mlp(activation)
    with torch.no_grad():
        model.layers[0].bias.fill_(-100.0)
    found = measure(model)
    assert found["activation/layers.0/dead"] == (1.0 if activation == "relu" else 0.0)
    saturates = activation in ("sigmoid", "tanh", "softsign", "elu", "selu")
    assert found["activation/layers.0/saturated"] == (1.0 if saturates else 0.0)


def test_saturation_of_gaussian_inputs_is_that_of_theory() -> None:
    images = torch.randn(4000, 1, 1, 1, generator=generator(4))
    labels = torch.zeros(4000, dtype=torch.long)
    normal = torch.distributions.Normal(0.0, 1.0)
    for activation, edge in (("tanh", math.atanh(0.95)), ("sigmoid", math.log(0.95 / 0.05))):
        model = Mlp(in_shape=(1, 1, 1), classes=2, widths=(1,), activation=activation, norm="none", dropout=0.0)
        nn.init.constant_(model.layers[0].weight, 2.0)
        nn.init.zeros_(model.layers[0].bias)
        share = 2 * (1 - normal.cdf(torch.tensor(edge / 2)).item())
        error = (share * (1 - share) / 4000) ** 0.5
        found = measure(model, images, labels)["activation/layers.0/saturated"]
        assert found == pytest.approx(share, abs=4 * error)


def test_an_activation_belongs_to_its_layer_through_norm_and_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    found = measure(model)
    model.eval()
    hidden = model[:4](IMAGES).double()
    assert found["activation/0/mean"] == pytest.approx(hidden.mean().item(), rel=1e-6)
    assert found["activation/0/dead"] == (hidden.amax((0, 2, 3)) == 0).double().mean().item()


def test_an_activation_in_place_right_after_its_layer_changes_no_statistic() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(20, 9), nn.ReLU(inplace=inplace), nn.Linear(9, 3)]
        found.append(measure(nn.Sequential(nn.Flatten(), *layers)))
    assert found[0] == found[1]


def test_after_a_skip_connection_an_activation_belongs_to_no_layer() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.relu, self.head = nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(self.relu(x + self.one(x)))

    found = measure(Residual())
    assert "activation/one/mean" not in found and "signal/head/forward_gain" in found


def test_gains_equal_ratios_of_mean_squares_and_of_gradient_norms() -> None:
    model = make_mlp("tanh").double()
    found = measure(model, IMAGES.double())
    x = IMAGES.double().flatten(1)
    z = []
    for index, layer in enumerate(model.layers):
        z.append(layer(x if index == 0 else z[-1].tanh()))
    gradients = torch.autograd.grad(F.cross_entropy(z[-1], LABELS), z)
    squares = [x.square().mean(), *(value.square().mean() for value in z)]
    for index in range(3):
        gain = squares[index + 1] / squares[index]
        assert found[f"signal/layers.{index}/forward_gain"] == pytest.approx(gain.item(), rel=1e-9)
    for index in range(2):
        gain = gradients[index].square().sum() / gradients[index + 1].square().sum()
        assert found[f"signal/layers.{index}/backward_gain"] == pytest.approx(gain.item(), rel=1e-9)
    assert "signal/layers.2/backward_gain" not in found


def test_gains_of_a_wide_he_network_are_one_as_mean_field_predicts() -> None:
    model = Mlp(in_shape=(1, 5, 4), classes=400, widths=[800] * 6, activation="relu", norm="none", dropout=0.0)
    draw = generator(5)
    for layer in model.layers:
        nn.init.kaiming_normal_(layer.weight, generator=draw)
        nn.init.zeros_(layer.bias)
    found = measure(model)
    # q gains sigma_w^2 E[phi^2] = 2 * 1/2 a layer, and the gradient chi = sigma_w^2 E[phi'^2] = 2 * 1/2.
    forward = [found[f"signal/layers.{index}/forward_gain"] for index in range(1, 7)]
    backward = [found[f"signal/layers.{index}/backward_gain"] for index in range(6)]
    assert math.prod(forward) ** (1 / 6) == pytest.approx(1, abs=0.05)
    assert math.prod(backward) ** (1 / 6) == pytest.approx(1, abs=0.05)


def test_weights_of_nearly_0_are_counted_as_absent() -> None:
    model = make_mlp()
    with torch.no_grad():
        model.layers[0].weight[0, :5] = 1e-8
        model.layers[0].weight[1, :5] = -1.1e-8
    found = measure(model)
    assert found["weight/layers.0/sparsity"] == pytest.approx(5 / 240)
    assert found["weight/layers.1/sparsity"] == 0


def test_zero_weights_give_zeros_and_no_error() -> None:
    model = make_mlp()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = measure(model)
    assert all(math.isfinite(value) for value in found.values())
    assert found["weight/layers.0/stable_rank"] == found["signal/layers.1/forward_gain"] == 0
    assert found["weight/layers.0/row_spread"] == 0
    assert found["weight/layers.0/sparsity"] == found["activation/layers.1/dead"] == 1


def test_constant_weights_have_no_spread_and_rank_one() -> None:
    model = make_mlp()
    nn.init.constant_(model.layers[0].weight, 0.1)
    found = measure(model)
    assert found["weight/layers.0/std"] < 1e-16
    assert found["weight/layers.0/stable_rank"] == pytest.approx(1, rel=1e-5)
    assert found["weight/layers.0/row_spread"] < 1e-6 < 1 < found["weight/layers.1/row_spread"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_broken_weights_are_measured_without_an_error(value: float) -> None:
    model = make_mlp()
    nn.init.constant_(model.layers[1].weight, value)
    found = measure(model)
    assert math.isfinite(found["weight/layers.0/norm"])
    norm = found["weight/layers.1/norm"]
    assert norm == pytest.approx(value * 84**0.5, rel=1e-6, nan_ok=True)


def test_an_accelerator_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mlp()
    stats = LayerStats(model, images=IMAGES, labels=LABELS)
    expected, histograms = stats.measure(), stats.histograms
    fetch, fetched = Tensor.cpu, []

    def counted(tensor: Tensor) -> Tensor:
        fetched.append(tensor)
        return fetch(tensor)

    monkeypatch.setattr(Tensor, "cpu", counted)
    monkeypatch.setattr(transfer, "at_hand", lambda tensor: False)
    assert (stats.measure(), stats.histograms) == (expected, histograms)
    assert len(fetched) == 1


def test_what_is_fetched_together_comes_back_as_it_was() -> None:
    tensors = [
        torch.tensor([[math.pi, -math.inf], [1e-320, 5e300]], dtype=torch.float64),
        torch.tensor([0.1, 3.4e38, 1e-45, -0.0]),
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.zeros(0, 3),
    ]
    found = transfer.unpack(transfer.pack(tensors), tensors)
    for tensor, back in zip(tensors, found, strict=True):
        assert back.dtype == tensor.dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_a_layer_the_model_does_not_use_has_its_weights_measured_only() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(20, 3), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    model = Idle()
    model.used.weight.requires_grad_(False)
    found = measure(model)
    assert {key.split("/")[0] for key in found if "/idle/" in key} == {"weight"}
    assert {key.split("/")[0] for key in found if "/used/" in key} == {"weight", "signal"}


def test_every_key_of_the_table_is_there_for_a_hidden_layer() -> None:
    stats = LayerStats(make_mlp(), images=IMAGES, labels=LABELS)
    stats.remember()
    names = {key.replace("/layers.0/", "/L/") for key in stats.measure() if "/layers.0/" in key}
    weight = "mean std absmax norm spectral_norm stable_rank row_spread sparsity".split()
    activation = "mean std dead saturated".split()
    assert names == {
        *(f"weight/L/{name}" for name in weight),
        *(f"activation/L/{name}" for name in activation),
        "grad/L/norm",
        "update/L/ratio",
        "signal/L/forward_gain",
        "signal/L/backward_gain",
    }


def test_nothing_of_a_measurement_stays_in_memory() -> None:
    model = make_mlp()
    outputs: list[weakref.ref[Tensor]] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output)))
    measure(model)
    gc.collect()
    assert len(outputs) == 3 and not any(output() is not None for output in outputs)
