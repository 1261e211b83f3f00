"""What moves below a layer while a network trains: percentiles, covariate shift, gains under batch statistics."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import generator
from tiny import IMAGES, LABELS, make_mlp
from torch import Tensor, nn

from fanin.models import Cnn
from fanin.models.mlp import Mlp
from fanin.models.noise import noise_state
from fanin.stats import FULL, LayerStats
from fanin.stats.batch_mode import batch_mode
from fanin.stats.covariate_shift import compare, covariate_shift
from fanin.stats.drift import drifts, percentiles
from fanin.stats.gains import measure_gains


def stats_of(model: nn.Module) -> LayerStats:
    return LayerStats(model, images=IMAGES, labels=LABELS, level="full")


def moved(model: nn.Module) -> nn.Module:
    """With running averages that are not those of the probe."""
    model.train()
    for start in range(0, len(IMAGES), 16):
        model(3 * IMAGES[start : start + 16] + 1)
    return model


def test_percentiles_are_those_of_what_the_norm_gives_to_the_activation():
    model = moved(make_mlp("tanh", norm="batch"))
    found = stats_of(model).measure()
    x = IMAGES.flatten(1)
    for index in range(2):
        z = F.batch_norm(model.layers[index](x), None, None, training=True)  # scale 1, shift 0
        expected = np.percentile(z.detach().double().numpy(), [15, 50, 85], axis=0).mean(1)
        names = [found[f"activation/layers.{index}/{name}"] for name in ("p15", "p50", "p85")]
        assert names == pytest.approx(expected, rel=1e-4, abs=1e-5)
        x = z.tanh()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_channels_percentiles_are_over_images_and_positions_also_before_an_activation_in_place(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(36, 3))
    values = model[0](IMAGES).detach().double().movedim(1, 0).flatten(1).numpy()
    found = percentiles(model, IMAGES)
    assert list(found) == ["0"]
    assert found["0"].numpy() == pytest.approx(np.percentile(values, [15, 50, 85], axis=1), rel=1e-5)


def test_drift_is_the_way_of_the_percentiles_in_units_of_their_spread_whatever_the_scale():
    for scale in (1.0, 1e-6):
        model = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Sigmoid(), nn.Linear(8, 3)).double()
        model[1].load_state_dict({"weight": scale * torch.eye(8, 20), "bias": torch.zeros(8)})
        before = percentiles(model, IMAGES.double())
        with torch.no_grad():
            model[1].bias += scale * torch.tensor([0.5] * 4 + [-0.1] * 4)
        values = np.percentile(IMAGES.flatten(1)[:, :8].numpy(), [15, 85], axis=0)
        found = drifts(percentiles(model, IMAGES.double()), before)["activation/1/drift"]
        assert found == pytest.approx(0.3 / (values[1] - values[0]).mean(), rel=1e-5)


def test_drift_is_told_from_the_second_record_on_and_is_0_where_nothing_moved():
    stats = stats_of(make_mlp("tanh", norm="noisy_batch"))
    assert "activation/layers.0/drift" not in stats.measure()
    assert stats.measure()["activation/layers.0/drift"] == 0
    stats.model.train()(IMAGES)  # a step of training draws noise, and what follows meets another one
    assert stats.measure()["activation/layers.0/drift"] > 0.02


def test_units_that_say_nothing_have_no_drift():
    model = make_mlp("tanh")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    stats = stats_of(model)
    stats.measure()
    assert stats.measure(lr=0.1)["activation/layers.0/drift"] == 0


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_covariate_shift_is_that_of_a_step_by_hand(norm):
    model, lr = moved(make_mlp("tanh", norm=norm)).double(), 0.5
    for dropout in model.dropouts:
        dropout.p = 0.0
    found = covariate_shift(model, IMAGES.double(), LABELS, lr=lr)
    parts = [("layers.0", "norms.0"), ("layers.1", "norms.1"), ("layers.2",)]
    for index in range(3):
        stepped = copy.deepcopy(model).train()
        before = gradients(stepped)
        below = tuple(name for names in parts[:index] for name in names)
        with torch.no_grad():
            for name, parameter in stepped.named_parameters():
                if name.startswith(below) and below:
                    parameter -= lr * before[name]
        own = [name for name in before if name.startswith(f"layers.{index}.")]
        shift = flat(before, own) - flat(gradients(stepped), own)
        assert found[f"grad/layers.{index}/covariate_shift"] == pytest.approx(shift.norm().item(), rel=1e-6)
        cosine = F.cosine_similarity(flat(before, own), flat(gradients(stepped), own), dim=0).item()
        assert found[f"grad/layers.{index}/covariate_shift_cosine"] == pytest.approx(cosine, rel=1e-6)
    assert found["grad/layers.2/covariate_shift"] > 1e-3 and found["grad/layers.2/covariate_shift_cosine"] < 1 - 1e-6


def gradients(model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = F.cross_entropy(model(IMAGES.double()), LABELS)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def flat(found: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([found[name].flatten() for name in names])


def test_a_single_layer_has_no_covariate_shift():
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), nn.Sequential(nn.Flatten(), make_frozen())):
        found = covariate_shift(model, IMAGES, LABELS, lr=1.0)
        assert set(found.items()) <= {("grad/1/covariate_shift", 0.0), ("grad/1/covariate_shift_cosine", 1.0)}
    assert not found, "weights that are not trained have no gradient"


def make_frozen() -> nn.Linear:
    return nn.Linear(20, 3).requires_grad_(False)


def test_gradients_that_turn_by_a_right_angle_have_a_cosine_of_0():
    assert compare([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 4.0])]) == (5.0, 0.0)
    assert compare([torch.zeros(2)], [torch.zeros(2)]) == (0.0, 0.0)


def test_a_measurement_leaves_weights_averages_streams_gradients_and_modes_alone():
    model = moved(make_mlp("tanh", norm="noisy_batch")).train()
    model.norms[0].eval()
    F.cross_entropy(model(IMAGES[:8]), LABELS[:8]).backward()
    stats = stats_of(model)
    before = copy.deepcopy(everything(model))
    stats.measure(lr=10.0)
    after = everything(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [norm.training for norm in model.norms] == [False, True]
    assert all(norm.track_running_stats for norm in model.norms)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def everything(model: nn.Module) -> dict[str, Tensor]:
    kept = dict(model.state_dict()) | {f"noise {key}": value for key, value in noise_state(model).items()}
    kept |= {f"gradient {name}": parameter.grad for name, parameter in model.named_parameters()}
    return kept | {"global": torch.get_rng_state()}


def test_weights_come_back_to_the_bit_when_a_measurement_is_interrupted():
    class Interrupted(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Interrupted.calls += 1
            if Interrupted.calls == 4:
                raise KeyboardInterrupt
            return x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 9), nn.Linear(9, 9), nn.Linear(9, 3), Interrupted())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        covariate_shift(model, IMAGES, LABELS, lr=1.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_under_batch_statistics_relu_gradients_grow_by_1_467_a_layer_which_running_averages_hide():
    model = Mlp(in_shape=(1, 20, 20), classes=10, widths=[500] * 14, activation="relu", norm="batch", dropout=0.5)
    images = torch.randn(256, 1, 20, 20, generator=generator(3))
    for number, layer in enumerate(model.layers):
        nn.init.kaiming_normal_(layer.weight, generator=generator(number))
    with batch_mode(model, images):
        found = measure_gains(model, images, torch.arange(256) % 10)
    inner = [found.backward[f"layers.{index}"] for index in range(3, 12)]
    growth = math.prod(inner) ** (1 / len(inner))
    assert growth == pytest.approx(math.pi / (math.pi - 1), rel=0.05)  # Yang et al. 2019
    still = measure_gains(model.eval(), images, torch.arange(256) % 10)
    hidden = [still.backward[f"layers.{index}"] for index in range(3, 12)]
    assert math.prod(hidden) ** (1 / len(hidden)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_without_batch_norm_gains_in_batch_mode_are_the_ordinary_ones(norm):
    found = stats_of(make_mlp("tanh", norm=norm)).measure()
    batch = {key.replace("batch_", ""): value for key, value in found.items() if "/batch_" in key}
    assert len(batch) == 5 and batch == pytest.approx({key: found[key] for key in batch}, rel=1e-9)


def test_every_key_of_the_full_table_is_there_for_a_hidden_layer():
    stats = stats_of(make_mlp("tanh", norm="batch"))
    stats.measure()
    found = stats.measure(lr=0.1)
    assert {f"{kind}/layers.0/{name}" for kind, names in FULL.items() for name in names} <= found.keys()
    assert not [key for key in LayerStats(stats.model, images=IMAGES, labels=LABELS).measure() if "/p50" in key]


def test_a_probe_of_one_image_has_no_statistics_of_its_own():
    model = moved(make_mlp("tanh", norm="batch"))
    stats = LayerStats(model, images=IMAGES[:1], labels=LABELS[:1], level="full")
    found = stats.measure(lr=0.1)
    assert found["signal/layers.1/batch_forward_gain"] == found["signal/layers.1/forward_gain"]


def test_a_convolutional_network_with_norms_and_pooling_is_measured():
    torch.manual_seed(0)
    options = {"kernel": 3, "padding": 1, "activation": "relu", "norm": "batch", "dropout": 0.0}
    model = Cnn(in_shape=(1, 5, 4), classes=3, stages=[[6], [6]], hidden=[9], **options)
    found = stats_of(model).measure(lr=0.1)
    for index in range(4):
        assert 0 <= found[f"grad/layers.{index}/covariate_shift"] < math.inf
        assert index == 3 or found[f"activation/layers.{index}/p15"] < found[f"activation/layers.{index}/p85"]


def test_broken_weights_are_measured_without_an_error():
    model = make_mlp("tanh", norm="batch")
    nn.init.constant_(model.layers[0].weight, math.nan)
    found = stats_of(model).measure(lr=0.1)
    assert math.isnan(found["activation/layers.0/p50"]) and math.isnan(found["grad/layers.1/covariate_shift"])
