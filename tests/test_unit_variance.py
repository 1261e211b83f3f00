"""lsuv against its own promise, measured from outside, on every architecture and activation."""

import pytest
import torch
from initialized import initialize, options_of
from torch import nn

from fanin import initializers as init
from fanin import models
from fanin.errors import ConfigError
from fanin.models.activation import ACTIVATIONS
from fanin.randomness import Streams

STREAMS = Streams(seed=0, replicate=0)
LAYERS = (nn.Linear, nn.Conv2d)


def pictures(count: int = 400, shape=(1, 28, 28)) -> torch.Tensor:
    """Pixels in [0, 1], mostly dark, smooth: like digits."""
    noise = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    return nn.functional.avg_pool2d(noise, 5, stride=1, padding=2).sub(0.45).clamp(0, 0.1).mul(10)


def mlp(**arguments) -> nn.Module:
    settings = dict(in_shape=(1, 28, 28), classes=10, widths=[256] * 6, activation="relu", norm="none", dropout=0.0)
    return models.Mlp(**settings | arguments)


def cnn(**arguments) -> nn.Module:
    settings = dict(options_of("model", "cnn"), norm="none", dropout=0.0) | arguments
    settings.pop("_target_")
    return models.Cnn(in_shape=(1, 28, 28), classes=10, **settings)


def variances(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Of every layer's output, over images, units and places."""
    found: dict[str, float] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(
                lambda *given, path=path: found.update({path: given[2].double().var(correction=0).item()})
            )
    with torch.no_grad():
        model(images)
    return found


def start(model: nn.Module, images: torch.Tensor, **changes) -> nn.Module:
    initialize(model, "lsuv", images=images, labels=torch.zeros(len(images)).long(), streams=STREAMS, **changes)
    return model


CASES = [(mlp, name, "zeros") for name in ACTIVATIONS] + [(cnn, name, "zeros") for name in ("relu", "tanh")]
CASES += [(mlp, name, bias) for name in ("relu", "sigmoid") for bias in ("torch_default", 0.3)]


@pytest.mark.parametrize(("make", "activation", "bias"), CASES)
def test_every_layer_has_an_output_of_variance_1(make, activation, bias):
    images = pictures(100 if make is cnn else 400)
    found = variances(start(make(activation=activation), images, bias=bias), images)
    assert len(found) >= 6 - 1 and all(0.95 < value < 1.05 for value in found.values())


def test_images_that_were_not_looked_at_have_it_nearly_too():
    model = start(mlp(), pictures(2000))
    assert all(0.8 < value < 1.25 for value in variances(model.eval(), pictures(4000)[2000:]).values())


def test_the_first_layer_takes_up_the_scale_of_the_pixels():
    model, brighter = (start(mlp(), factor * pictures()) for factor in (1, 255))
    ratio = model.layers[0].weight / brighter.layers[0].weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 255), rtol=0.02, atol=0)
    torch.testing.assert_close(model.layers[1].weight, brighter.layers[1].weight, rtol=0.02, atol=1e-5)


def test_weights_stay_a_multiple_of_those_of_the_initializer_that_is_scaled():
    for name in ("orthogonal", "he_normal"):
        options = options_of("initializer", name)
        bias = options.pop("bias")
        model, plain = start(mlp(), pictures(), weight=options), mlp()
        function = getattr(init, options.pop("_target_").rpartition(".")[2])
        init.initialize(plain, weight=init.bind(function, options), bias=bias, streams=STREAMS)
        for layer, before in zip(model.layers, plain.layers, strict=True):
            torch.testing.assert_close(layer.weight / layer.weight.norm(), before.weight / before.weight.norm())


def test_a_residual_sum_and_batch_norm_are_passed_as_in_training():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.outer = nn.Linear(784, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            self.norm, self.dropout = nn.BatchNorm1d(64), models.dropout.Dropout(0.5)

        def forward(self, x):
            x = self.norm(self.stem(x.flatten(1)))
            return self.outer(self.dropout(x + self.inner(x.relu())))

    images = pictures()
    model = start(Residual(), images)
    assert model.training and model.norm.num_batches_tracked == 0 and (model.norm.running_var == 1).all()
    model.dropout.eval()
    assert all(0.95 < value < 1.05 for value in variances(model, images).values())


@pytest.mark.parametrize("images", [torch.zeros(8, 1, 28, 28), torch.ones(8, 1, 28, 28)], ids=["black", "white"])
def test_images_that_are_all_the_same_are_refused(images):
    with pytest.raises(ConfigError, match="initializer: lsuv needs images that differ, and the 8 it looks at"):
        start(mlp(), images)


def test_a_layer_whose_output_does_not_vary_is_named():
    zeros = {"_target_": "fanin.initializers.zeros"}
    with pytest.raises(ConfigError, match=r"lsuv cannot scale layer layers.0: .* take another `weight`"):
        start(mlp(), pictures(8), weight=zeros)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tolerance", 0, "initializer.tolerance: must be a finite number > 0 and < 1, got 0"),
        ("iterations", 0, "initializer.iterations: must be a whole number >= 1, got 0"),
        ("batch_size", 1, "initializer.batch_size: must be a whole number >= 2, got 1"),
    ],
)
def test_an_option_out_of_range_is_refused(option, value, message):
    with pytest.raises(ConfigError, match=message):
        start(mlp(), pictures(8), **{option: value})
    with pytest.raises(ConfigError, match=r"at least 2 training images \(data.n_train\)"):
        start(mlp(), pictures(1))
