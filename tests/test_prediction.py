"""Predicted gains beside those measured on networks that were really drawn."""

import math
from functools import partial

import pytest
import torch
from draws import generator
from torch import Tensor, nn

from fanin import initializers, meanfield
from fanin.models import Cnn, Mlp
from fanin.models.activation import ACTIVATIONS
from fanin.randomness import Streams
from fanin.stats import LayerStats
from fanin.stats.gains import Gains, measure_gains
from fanin.stats.prediction import predict

INITIALIZERS = {
    "xavier": partial(initializers.xavier_normal, gain=1.0),
    "he": partial(initializers.he_normal, gain=2**0.5, mode="fan_in"),
    "lecun": initializers.lecun_normal,
    "uniform": partial(initializers.uniform, low=0.0, high=1.0),
    "constant": partial(initializers.constant, value=0.1),
    "orthogonal": partial(initializers.orthogonal, gain=1.0),
}
SHAPE = (1, 20, 20)


def images(count: int = 64, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Of different lengths and means, as real ones are."""
    draw = generator(1)
    scale, shift = torch.rand(2, count, 1, 1, 1, generator=draw)
    return (scale + 0.5) * torch.randn(count, *shape, generator=draw) + shift


IMAGES = images()
LABELS = torch.randint(10, (64,), generator=generator(2))


def wide(activation: str = "relu", *, width: int = 1024, depth: int = 10, **options: object) -> Mlp:
    options = {"norm": "none", "dropout": 0.0} | options
    return Mlp(in_shape=SHAPE, classes=width, widths=[width] * (depth - 1), activation=activation, **options)


def drawn(model: nn.Module, initializer: str, *, replicate: int = 0, bias: str | float = "zeros") -> nn.Module:
    weight = INITIALIZERS[initializer]
    initializers.initialize(model, weight=weight, bias=bias, streams=Streams(0, replicate))
    return model


def compare(model: nn.Module, *, training: bool = False) -> tuple[Gains, Gains]:
    model.train(training)
    return predict(model, IMAGES), measure_gains(model, IMAGES, LABELS)


def deviation(predicted: dict[str, float], measured: dict[str, float]) -> float:
    """Geometric mean of measured / predicted over the layers."""
    assert predicted.keys() == measured.keys()
    return math.exp(sum(math.log(measured[path] / predicted[path]) for path in predicted) / len(predicted))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_predicted_gains_of_a_wide_network_are_those_measured(activation):
    initializer = ["xavier", "he", "lecun"][len(activation) % 3]
    predicted, measured = compare(drawn(wide(activation), initializer))
    assert len(predicted.forward) == 10 and len(predicted.backward) == 9
    assert deviation(predicted.forward, measured.forward) == pytest.approx(1, abs=0.05)
    assert deviation(predicted.backward, measured.backward) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("initializer", ["xavier", "he", "lecun"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_layers_gain_is_within_5_percent_over_20_draws(activation, initializer):
    model, ratios = wide(activation), {}
    for replicate in range(20):
        predicted, measured = compare(drawn(model, initializer, replicate=replicate))
        for key, value in measured.metrics().items():
            ratios.setdefault(key, []).append(value / predicted.metrics()[key])
    means = {key: sum(values) / len(values) for key, values in ratios.items()}
    assert len(means) == 19 and all(abs(mean - 1) < 0.05 for mean in means.values()), means


def test_theory_needs_the_weights_scale_only_and_not_their_draw():
    gains = [predict(drawn(wide("tanh"), "he", replicate=replicate), IMAGES).metrics() for replicate in (0, 1)]
    assert gains[0] != gains[1]
    assert gains[0] == pytest.approx(gains[1], rel=0.02)


def test_biases_lengthen_the_signal_by_their_variance():
    predicted, measured = compare(drawn(wide("tanh", depth=4), "lecun", bias="torch_default"))
    assert predicted.forward == pytest.approx(measured.forward, rel=0.06)
    predicted, measured = compare(drawn(wide("tanh", depth=4), "lecun", bias=0.5))
    assert predicted.forward == pytest.approx(measured.forward, rel=0.06)
    assert (
        predicted.forward["layers.1"] > 1.2 * predict(drawn(wide("tanh", depth=4), "lecun"), IMAGES).forward["layers.1"]
    )


@pytest.mark.parametrize("initializer", ["uniform", "constant"])
def test_weights_with_a_mean_let_the_signal_explode_as_predicted(initializer):
    predicted, measured = compare(drawn(wide("relu", width=400, depth=4), initializer))
    assert predicted.forward == pytest.approx(measured.forward, rel=0.06)
    assert predicted.forward["layers.2"] > 100


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_multiplies_both_gains_while_training(p):
    model = drawn(wide("relu", depth=6, dropout=p), "he")
    predicted, measured = compare(model, training=True)
    assert deviation(predicted.forward, measured.forward) == pytest.approx(1, abs=0.05)
    assert deviation(predicted.backward, measured.backward) == pytest.approx(1, abs=0.05)
    still = predict(model.eval(), IMAGES)
    for path in still.backward:
        assert predicted.backward[path] == pytest.approx(still.backward[path] / (1 - p), rel=0.02)


def test_batch_norm_lets_relu_gradients_grow_by_1_467_a_layer():
    model = drawn(wide("relu", depth=12, width=700, norm="batch"), "xavier")
    predicted, measured = compare(model, training=True)
    inner = [f"layers.{index}" for index in range(2, 10)]
    growth = math.exp(sum(math.log(measured.backward[path]) for path in inner) / len(inner))
    assert growth == pytest.approx(math.pi / (math.pi - 1), rel=0.05)
    for path in inner:
        assert predicted.backward[path] == pytest.approx(meanfield.batch_norm_gain(nn.ReLU()), rel=0.03)


def test_a_layer_norm_sets_lengths_and_gradients_back():
    predicted, measured = compare(drawn(wide("gelu", depth=6, norm="layer"), "he"), training=True)
    assert deviation(predicted.forward, measured.forward) == pytest.approx(1, abs=0.05)
    assert deviation(predicted.backward, measured.backward) == pytest.approx(1, abs=0.05)


def test_convolutions_lose_at_their_border_what_the_padding_lacks():
    layers = [nn.Conv2d(1, 60, 3, padding=1), nn.ReLU(), nn.Conv2d(60, 60, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(60, 50, 3, padding=1), nn.Flatten(), nn.Linear(50 * 400, 10))
    draws = [compare(drawn(model, "he", replicate=replicate)) for replicate in range(4)]
    border = (58 / 60) ** 2  # of 3 x 20 taps along an axis, two see padding
    assert draws[0][0].forward["2"] == pytest.approx(border, rel=0.05)
    for kind, path in (("forward", "0"), ("forward", "2"), ("forward", "4"), ("backward", "0"), ("backward", "2")):
        ratios = [getattr(measured, kind)[path] / getattr(predicted, kind)[path] for predicted, measured in draws]
        assert sum(ratios) / 4 == pytest.approx(1, abs=0.1), (kind, path)


def test_behind_pooling_the_prediction_starts_from_what_comes_in():
    options = {"kernel": 3, "padding": 1, "activation": "relu", "norm": "none", "dropout": 0.0}
    model = Cnn(in_shape=SHAPE, classes=100, stages=[[64], [64]], hidden=[400, 400], **options)
    predicted, measured = compare(drawn(model, "he"))
    for path in ("layers.1", "layers.3"):  # few channels, strongly correlated: single draws scatter
        assert predicted.forward[path] == pytest.approx(measured.forward[path], rel=0.25)
    assert list(predicted.backward) == ["layers.2", "layers.3"]  # not across the pooling


class Residual(nn.Module):
    """x + W_2 relu(W_1 x), the sum in place as torchvision writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(400, width), nn.Linear(width, width),
                                                    nn.Linear(width, width), nn.Linear(width, 10))  # fmt: skip
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        out = self.two(self.relu(self.one(x)))
        out += x
        return self.head(self.relu(out))


def test_behind_a_sum_in_place_the_prediction_starts_from_what_comes_in():
    predicted, measured = compare(drawn(Residual(900), "he"))
    assert predicted.forward == pytest.approx(measured.forward, rel=0.4)  # 10 logits of one draw
    assert {"one"} <= set(predicted.backward) and "two" not in predicted.backward
    found = LayerStats(drawn(Residual(30), "he"), images=IMAGES, labels=LABELS).measure()
    assert "activation/two/mean" not in found


def test_predicting_changes_no_state_and_draws_nothing():
    model = drawn(wide("relu", width=50, depth=3, norm="batch", dropout=0.5), "he").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    found = LayerStats(model, images=IMAGES, labels=LABELS).predict()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generator(5)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert set(found) == {
        *(f"signal/layers.{index}/predicted_forward_gain" for index in range(3)),
        *(f"signal/layers.{index}/predicted_backward_gain" for index in range(2)),
    }


def test_zero_weights_are_predicted_to_pass_nothing_on():
    model = wide("relu", width=20, depth=3)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    predicted = predict(model, IMAGES)
    assert predicted.forward["layers.0"] == 0 and predicted.backward["layers.1"] == 0
