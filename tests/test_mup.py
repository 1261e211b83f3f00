"""Maximal update parametrization: its scales, its learning rates, and that neither signal nor step depends on width."""

import math
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from architectures import MNIST, mlp
from torch import nn
from trained import SMALL, configuration, train

from fanin import initializers as init
from fanin import models, optimizers
from fanin.errors import ConfigError
from fanin.initializers.roles import survey
from fanin.randomness import Streams
from fanin.run import Trainer

CONF = Path(__file__).parent.parent / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
LIKE_SGD = ["sgd", "momentum", "nesterov"]
LIKE_ADAM = ["adam", "adamw", "adamax", "rmsprop", "adagrad"]
GAIN = math.sqrt(2)
HE = init.bind(init.he_normal, dict(gain=GAIN, mode="fan_in"))


def mup(base_width: int = 64, readout: str = "normal") -> init.Mup:
    return init.Mup(base_width=base_width, gain=GAIN, readout=readout)


def cnn(channels: int) -> models.Cnn:
    options = dict(stages=[[channels, channels]], kernel=3, padding=1, hidden=[3 * channels], norm="batch")
    return models.Cnn(in_shape=MNIST, classes=10, activation="relu", dropout=0.0, **options)


def started(model, weight, *, replicate=0):
    init.initialize(model, weight=weight, bias="zeros", streams=Streams(0, replicate), in_shape=MNIST)
    return model


def optimizer_of(model, weight, name: str, *, weight_decay=0.0, **changes) -> torch.optim.Optimizer:
    options = yaml.safe_load((CONF / f"optimizer/{name}.yaml").read_text()) | changes
    factory = resolve_name(options.pop("_target_"))
    rates = init.learning_rates(weight, model, in_shape=MNIST, optimizer=factory)
    return optimizers.build(factory, model.parameters(), rates=rates, weight_decay=weight_decay, **options)


def rates_of(model, optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def batch(count: int = 200, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten blurred patterns with noise: images of ten classes with E||x||^2 about 90, as MNIST's."""
    generator = torch.Generator().manual_seed(seed)
    patterns, labels = torch.randn(10, *MNIST, generator=generator), torch.arange(count) % 10
    noise = torch.randn(count, *MNIST, generator=generator)
    return 0.3 * patterns[labels] + 0.15 * noise, labels


def step(model, optimizer, images, labels) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


# Scales.


@pytest.mark.parametrize("make, width", [(lambda: mlp([256, 400]), 256), (lambda: cnn(32), 32)])
def test_hidden_weights_have_he_s_scale_and_the_readout_one_that_falls_with_the_width_once_more(make, width):
    model = started(make(), mup(base_width=width // 4))
    for number, layer in enumerate(model.layers, start=1):
        weight = layer.weight.detach().double().flatten(1)
        n, std = weight.numel(), GAIN / math.sqrt(weight.shape[1])
        std /= 2 if number == len(model.layers) else 1  # r = 4, the readout's variance gain^2 / (fan_in r)
        assert abs(weight.mean()) < 5 * std / math.sqrt(n)
        assert abs(weight.std() - std) < 5 * std * math.sqrt(2 / (4 * n))


def test_at_the_base_width_it_is_he_and_every_layer_learns_at_the_same_rate():
    model, plain = started(mlp([64, 64]), mup(64)), started(mlp([64, 64]), HE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert set(rates_of(model, optimizer_of(model, mup(64), "adam", lr=0.01)).values()) == {0.01}


def test_a_readout_of_zeros_gives_zero_logits():
    assert not started(mlp([128, 128]), mup(readout="zeros"))(batch()[0]).any()


# Learning rates, by the table in the module.


@pytest.mark.parametrize("name", LIKE_SGD + LIKE_ADAM)
def test_the_rates_of_a_four_times_wider_network_are_those_of_the_table(name):
    model = started(mlp([256, 256], norm="layer"), mup(64))
    rates = rates_of(model, optimizer_of(model, mup(64), name, lr=0.01))
    vector, matrix = (4, 1) if name in LIKE_SGD else (1, 1 / 4)
    expected = {f"layers.{n}.bias": vector for n in (0, 1)} | {"layers.0.weight": vector, "layers.1.weight": matrix}
    expected |= {f"norms.{n}.{part}": vector for n in (0, 1) for part in ("weight", "bias")}
    expected |= {"layers.2.weight": 1 / 4, "layers.2.bias": 1}
    assert rates == pytest.approx({name: 0.01 * factor for name, factor in expected.items()})


def test_a_depthwise_convolution_has_one_input_a_unit_at_any_width_so_it_learns_as_a_vector():
    layers = [nn.Conv2d(1, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3, groups=4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64 * 22 * 22, 10))
    rates = mup(16).learning_rates(model, survey(model, MNIST), torch.optim.Adam)
    assert [rates[layer.weight] for layer in (model[0], model[1], model[2], model[4])] == [1, 1, 1 / 4, 1 / 4]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_weight_decays_by_lr_times_weight_decay_whatever_its_rate(name):
    model = started(mlp([256, 256]), mup(64))
    groups = optimizer_of(model, mup(64), name, lr=0.01, weight_decay=0.5).param_groups
    shrinks = {p.ndim: group["lr"] * group["decoupled_weight_decay"] for group in groups for p in group["params"]}
    assert shrinks == pytest.approx({1: 0, 2: 0.005})
    assert groups[0]["lr"] == 0.01  # the one that is recorded


def test_after_one_step_of_adam_each_weight_has_moved_by_its_own_rate():
    model = started(mlp([256, 256]), mup(64))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, optimizer_of(model, mup(64), "adam", lr=0.01, eps=1e-30), *batch())
    factors = {"layers.1.weight": 1 / 4, "layers.2.weight": 1 / 4}
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name])[parameter.grad != 0].abs()
        assert len(moved) > 5
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * factors.get(name, 1)), rtol=1e-2, atol=0)


# The same function as the paper's other form, which multiplies the output by 1 / r.


class Multiplied(nn.Module):
    """Table 8: the readout's weights are r times as large, and its output is divided by r."""

    def __init__(self, model: models.Mlp, ratio: float):
        super().__init__()
        *hidden, readout = model.layers
        self.hidden, self.bias = nn.ModuleList(hidden), readout.bias
        self.readout, self.ratio = nn.Parameter(readout.weight.detach() * ratio), ratio

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return x @ self.readout.T / self.ratio + self.bias


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_training_is_that_of_a_network_with_an_output_multiplier(name):
    ours = started(mlp([32, 32]).double(), mup(8))
    theirs = Multiplied(started(mlp([32, 32]).double(), mup(8)), ratio=4)
    first, second = theirs.hidden
    vectors = [first.weight, first.bias, second.bias, theirs.readout]
    adaptive = name.startswith("adam")
    settings = dict(lr=0.01, eps=1e-30) if adaptive else dict(lr=0.01)
    groups = [
        {"params": vectors, "lr": 0.01 * (1 if adaptive else 4)},
        {"params": [second.weight], "lr": 0.01 / (4 if adaptive else 1)},
        {"params": [theirs.bias]},
    ]
    options = yaml.safe_load((CONF / f"optimizer/{name}.yaml").read_text())
    kept = {key: options[key] for key in ("momentum", "betas") if key in options}
    reference = resolve_name(options["_target_"])(groups, weight_decay=0.0, **settings | kept)
    optimizer = optimizer_of(ours, mup(8), name, **settings)
    images, labels = batch(50)
    for _ in range(5):
        torch.testing.assert_close(ours(images.double()), theirs(images.double()))
        step(ours, optimizer, images.double(), labels)
        step(theirs, reference, images.double(), labels)
    assert ours.layers[2].weight.grad.any()


# The coordinate check (Yang et al. 2022, figure 5): what grows or vanishes with the width is wrong.

WIDTHS = (64, 128, 256, 512, 1024)


@cache
def slopes(kind: str, optimizer: str, lr: float, steps: int) -> tuple[list[float], list[float]]:
    """Of each layer's output (the last are the logits): by what power of the width its size, and its change in
    training, grow; averaged over 3 draws."""
    weight = HE if kind == "standard" else mup(64, readout=kind)
    sizes, changes = [], []
    for width in WIDTHS:
        pairs = [measured(weight, optimizer, width, lr=lr, steps=steps, replicate=k) for k in range(3)]
        sizes.append(np.mean([np.log2(size) for size, _ in pairs], axis=0))
        changes.append(np.mean([np.log2(change) for _, change in pairs], axis=0))
    logs = np.log2(WIDTHS)
    return np.polyfit(logs, sizes, 1)[0].tolist(), np.polyfit(logs, changes, 1)[0].tolist()


def measured(weight, optimizer: str, width: int, *, lr: float, steps: int, replicate: int):
    model = started(mlp([width, width]), weight, replicate=replicate)
    images, labels = batch(100, seed=replicate)
    before = outputs(model, images)
    updates = optimizer_of(model, weight, optimizer, lr=lr)
    for _ in range(steps):
        step(model, updates, images, labels)
    after = outputs(model, images)
    return [rms(z) for z in after], [rms(b - a) for a, b in zip(before, after, strict=True)]


@torch.no_grad()
def outputs(model: models.Mlp, images: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: found.append(output)) for layer in model.layers]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


@pytest.mark.parametrize(
    "readout, optimizer, lr, steps",
    [("normal", "adam", 0.003, 5), ("zeros", "adam", 0.003, 5), ("normal", "sgd", 0.1, 10)],
)
def test_neither_the_signal_nor_what_training_changes_of_it_depends_on_the_width(readout, optimizer, lr, steps):
    sizes, changes = slopes(readout, optimizer, lr, steps)
    assert max(map(abs, sizes)) < 0.1
    assert max(map(abs, changes)) < 0.1


def test_the_check_sees_what_is_wrong_with_the_standard_parametrization():
    _, changes = slopes("standard", "adam", 0.003, 1)
    assert changes[-1] > 0.3  # one step changes wide networks' logits more
    _, changes = slopes("standard", "sgd", 0.1, 5)
    assert changes[0] < -0.3  # and their features less


# In a run, and refused before it.

WIDE = (*SMALL, "initializer=mup", "model.widths=[64,64]")
BASED = (*WIDE, "initializer.base_width=16")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_that_has_a_rule_trains_and_every_other_is_refused_with_the_reason(name):
    complaint = Trainer(threads=1).complaint(configuration(*BASED, f"optimizer={name}"))
    if name in LIKE_SGD + LIKE_ADAM:
        assert complaint is None
    else:
        reason = {
            "lbfgs": "one learning rate for all layers",
            "rprop": "forget the learning rate",
            "adadelta": "eps is not small",
            "asgd": "how fast it decays",
            "sparse_adam": "there is no rule for SparseAdam",
        }[name]
        assert complaint.startswith("optimizer: initializer=mup sets a learning rate for each layer, and ")
        assert reason in complaint and complaint.endswith("take one of: " + ", ".join(LIKE_SGD + LIKE_ADAM))


def test_a_run_learns_with_it_and_records_the_optimizer_s_own_rate(project):
    digest = train(configuration(*BASED, "scheduler=cosine", "epochs=3"), project / "run")
    losses = [record["metrics"]["train/loss"] for record in digest.epochs]
    assert losses[-1] < losses[0]
    assert digest.epochs[0]["metrics"]["optimizer/lr"] == 0.001


@pytest.mark.parametrize(
    "overrides, message",
    [
        (WIDE, "initializer.base_width: must be a whole number >= 1, the width of the first layer .*, got None"),
        ((*WIDE, "initializer.base_width=0.5"), "initializer.base_width: must be a whole number .*, got 0.5"),
        ((*BASED, "initializer.gain=0"), "initializer.gain: must be above 0, got 0"),
        ((*BASED, "initializer.readout=zero"), "initializer.readout: 'zero' .* did you mean 'zeros'"),
        ((*BASED, "+initializer.width=3"), "initializer: 'width' is not one of: base_width, gain, readout"),
        (
            ("initializer=mup", "initializer.base_width=16", "model=softmax", "data=digits", "tracking=none"),
            "initializer: mup scales with the width of hidden layers, and this model has none",
        ),
        (
            (
                *(*SMALL, "initializer=zero_last", "initializer.rest._target_=fanin.initializers.Mup"),
                *("~initializer.rest.mode", "+initializer.rest.base_width=4", "+initializer.rest.readout=zeros"),
            ),
            "initializer.rest: must be an initializer that sets no learning rates",
        ),
    ],
)
def test_what_mup_cannot_do_is_refused_before_the_run(overrides, message):
    complaint = Trainer(threads=1).complaint(configuration(*overrides))
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(complaint)


def test_a_layer_without_a_rule_is_refused_by_name():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attend = nn.Linear(28, 16), nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = self.embed(x.squeeze(1))
            return self.head(self.attend(x, x, x)[0].mean(1))

    with pytest.raises(ConfigError, match=r"mup knows no rule for MultiheadAttention \(attend\)"):
        init.learning_rates(mup(8), Attentive(), in_shape=MNIST, optimizer=torch.optim.Adam)
