"""What an initializer is told about a layer: its place in the model, and the dropout that feeds it."""

import pytest
import torch
from torch import nn

from fanin import initializers, models
from fanin.errors import ConfigError
from fanin.initializers.roles import Layer, survey
from fanin.randomness import Streams

MNIST = (1, 28, 28)
STREAMS = Streams(seed=0, replicate=0)


def mlp(**changes) -> nn.Module:
    settings = dict(in_shape=MNIST, classes=10, widths=[8, 6], activation="relu", norm="none", dropout=0.0)
    return models.Mlp(**settings | changes)


def told(layers: dict[str, Layer]) -> list[tuple[str, int, float]]:
    ordered = sorted(layers.values(), key=lambda layer: layer.position)
    return [(layer.path, layer.count, round(layer.dropout, 6)) for layer in ordered]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_come_in_the_order_of_the_signal_with_the_dropout_that_feeds_them(device):
    with torch.device(device):
        model = mlp(dropout=0.3, norm="batch")
    assert told(survey(model, MNIST)) == [("layers.0", 3, 0.0), ("layers.1", 3, 0.3), ("layers.2", 3, 0.3)]


def test_the_order_is_that_of_the_calls_not_of_the_definition():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 10)
            self.never = nn.Linear(7, 7)
            self.body = nn.Conv2d(1, 5, 28)

        def forward(self, x):
            return self.head(torch.relu(self.body(x)).flatten(1))

    layers = survey(Reversed(), MNIST)
    assert [path for path, *_ in told(layers)] == ["body", "never", "head"]
    assert layers["body"].first and layers["head"].last
    assert not (layers["never"].first or layers["never"].last)


def test_two_dropouts_in_a_row_keep_the_product_of_what_they_keep_and_dropped_branches_do_not_count():
    dropout = models.dropout
    layers = [nn.Flatten(), nn.Dropout(0.2), dropout.Dropout(0.5), dropout.StochasticDepth(0.5), nn.Linear(784, 10)]
    assert told(survey(nn.Sequential(*layers), MNIST)) == [("4", 1, 0.6)]


def test_the_survey_of_a_classifier_of_torchvision_ends_at_its_classifier():
    with torch.device("meta"):
        options = dict(name="mobilenet_v2", stem="original", activation=None)
        model = models.torchvision_classifier(in_shape=MNIST, classes=10, **options)
    *_, last = told(survey(model, MNIST))
    assert last == ("classifier.1", 53, 0.2)


def test_a_survey_leaves_no_trace():
    model = mlp(norm="batch", dropout=0.5)
    state, before = {key: value.clone() for key, value in model.state_dict().items()}, torch.random.get_rng_state()
    survey(model, MNIST)
    assert model.training and torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_initializer_is_given_the_layer_that_it_asks_for():
    def by_position(weight, *, layer):
        weight.fill_(layer.position)

    model = mlp()
    initializers.initialize(model, weight=by_position, bias="zeros", streams=STREAMS, in_shape=MNIST)
    assert [layer.weight.unique().tolist() for layer in model.layers] == [[0], [1], [2]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_initializer_that_asks_for_the_bias_fills_it_in_place(device):
    seen = []

    def both(weight, *, bias, generator):
        weight.fill_(1.0)
        seen.append(None if bias is None else tuple(bias.shape))
        if bias is not None:
            bias.copy_(torch.randn(bias.shape, generator=generator))

    with torch.device(device):
        model = mlp(norm="batch")  # whose hidden layers have no bias
    initializers.initialize(model, weight=both, bias=None, streams=STREAMS)
    assert set(seen) == {None, (10,)}
    if device == "cpu":
        expected = torch.randn(10, generator=STREAMS.generator("init", "layers.2.weight"))
        assert torch.equal(model.layers[2].bias, expected)


def test_each_group_of_a_convolution_comes_with_its_own_part_of_the_bias():
    def means(weight, *, bias):
        weight.fill_(weight.shape[0])
        bias.copy_(torch.arange(len(bias)))

    convolution = nn.Conv2d(4, 6, 3, groups=2)
    initializers.initialize(convolution, weight=means, bias=None, streams=STREAMS)
    assert convolution.bias.tolist() == [0, 1, 2, 0, 1, 2]
    assert convolution.weight.unique().tolist() == [3]


def test_a_bias_is_chosen_once():
    def both(weight, *, bias):
        raise AssertionError("is never called")

    rule = r"initializer.bias: must be left out \(or null\): this initializer sets the biases itself, got 'zeros'"
    with pytest.raises(ConfigError, match=rule):
        initializers.initialize(mlp(), weight=both, bias="zeros", streams=STREAMS)
