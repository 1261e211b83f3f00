"""Pretraining a perceptron layer by layer: what each machine is shown, what becomes of it, and what it is good for."""

import re

import pytest
import torch
from initialized import initialize, options_of
from torch import nn
from trained import Trainer, configuration, configurations, train

from fanin import data, models, spool
from fanin.errors import ConfigError
from fanin.initializers import rbm
from fanin.initializers.belief_network import perceptron
from fanin.randomness import Streams

STREAMS = Streams(seed=0, replicate=0)
DIGITS = ("data=digits", "data.n_train=200", "data.val=100", "epochs=1", "stats=off", "tracking=none")


def digits(count: int = 300, *, scale: str = "unit") -> torch.Tensor:
    return data.prepare(data.load(data.digits, shape=[1, 8, 8], classes=10), scale=scale, device="cpu").images[:count]


def mlp(**arguments) -> nn.Module:
    settings = dict(in_shape=(1, 8, 8), classes=10, widths=[32, 16], activation="sigmoid", norm="none", dropout=0.0)
    return models.Mlp(**settings | arguments)


def pretrain(model: nn.Module, images: torch.Tensor, streams=STREAMS, **changes) -> list:
    labels = torch.zeros(len(images)).long()
    settings = {"epochs": 3, "batch_size": 20} | changes
    return initialize(model, "dbn", images=images, labels=labels, streams=streams, **settings)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_each_machine_learns_the_mean_activations_of_the_one_below():
    """Done again by hand, with the activations that the finished network itself has."""
    model, images = mlp(), digits()
    pretrain(model, images)
    options = options_of("initializer", "dbn")
    rule = rbm.Rule(**{name: options[name] for name in vars_of(rbm.Rule)} | {"batch_size": 20})
    rows = images.flatten(1)
    for path in ("layers.0", "layers.1"):
        layer = model.get_submodule(path)
        weight = 0.01 * torch.randn(layer.weight.shape, generator=STREAMS.generator("init", f"{path}.weight"))
        machine = rbm.start(weight, rows[30:], visible="binary")
        generator = STREAMS.generator("init", f"{path} pretraining")
        list(rbm.train(machine, rows[30:], rows[:30], rule=rule, epochs=3, generator=generator))
        assert torch.equal(layer.weight, machine.weight) and torch.equal(layer.bias, machine.hidden_bias)
        assert layer.bias.abs().max() > 0
        rows = torch.sigmoid(layer(rows)).detach()


def vars_of(kind: type) -> list[str]:
    return list(kind.__dataclass_fields__)


def test_the_output_layer_is_small_noise_that_no_machine_trained():
    model = mlp(widths=[32, 256])
    pretrain(model, digits(), std=0.05, bias=0.5)
    expected = 0.05 * torch.randn(10, 256, generator=STREAMS.generator("init", "layers.2.weight"))
    torch.testing.assert_close(model.layers[2].weight.detach(), expected, rtol=0, atol=0)
    assert (model.layers[2].bias == 0.5).all()


def test_every_layer_and_epoch_is_measured():
    steps = pretrain(mlp(dropout=0.5), digits())
    assert [step.number for step in steps] == [1, 2, 3] * 2
    keys = [sorted(step.metrics) for step in steps]
    assert keys[0] == keys[2] == ["layers.0/free_energy_gap", "layers.0/reconstruction_error"]
    assert keys[3] == keys[5] == ["layers.1/free_energy_gap", "layers.1/reconstruction_error"]
    first, last = (steps[place].metrics["layers.0/reconstruction_error"] for place in (0, 2))
    assert 0 < last < first


def test_it_is_a_function_of_streams_and_images_and_of_nothing_else():
    start = []
    for seed, replicate in ((0, 0), (1, 0), (2, 1)):
        torch.manual_seed(seed)
        model = mlp()
        pretrain(model, digits(), Streams(0, replicate))
        start.append(parameters(model))
    assert all(torch.equal(start[0][name], start[1][name]) for name in start[0])
    assert not any(torch.equal(start[0][f"layers.{n}.weight"], start[2][f"layers.{n}.weight"]) for n in range(3))


def test_a_deeper_network_starts_the_same_below():
    shallow, deep = mlp(), mlp(widths=[32, 16, 8])
    for model in (shallow, deep):
        pretrain(model, digits())
    for name in ("layers.0.weight", "layers.1.weight", "layers.1.bias"):
        assert torch.equal(shallow.get_parameter(name), deep.get_parameter(name))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_other_activations_take_over_the_same_weights(activation):
    model, other = mlp(), mlp(activation=activation)
    for each in (model, other):
        pretrain(each, digits())
    assert all(torch.equal(value, parameters(other)[name]) for name, value in parameters(model).items())


class Skipping(nn.Module):
    def __init__(self, *, add: bool, act: bool = True, tail: bool = False):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.activation, self.tail = nn.Sigmoid(), nn.Sigmoid()
        self.add, self.act, self.ends = add, act, tail

    def forward(self, x):
        x = self.activation(self.first(x.flatten(1)))
        y = self.second(x)
        y = self.activation(y) if self.act else y
        logits = self.last(x + y if self.add else y)
        return self.tail(logits) if self.ends else logits


def test_a_perceptron_is_told_by_what_feeds_its_layers():
    assert list(perceptron(Skipping(add=False), (1, 8, 8))) == ["first", "second", "last"]
    assert list(perceptron(mlp(dropout=0.5), (1, 8, 8))) == ["layers.0", "layers.1", "layers.2"]
    with torch.device("meta"):
        assert len(perceptron(mlp(), (1, 8, 8))) == 3
    wrong = {
        "last is fed by something else": Skipping(add=True),
        "last is fed by something": Skipping(add=False, act=False),
        "more follows on the last one": Skipping(add=False, tail=True),
    }
    for message, model in wrong.items():
        with pytest.raises(ConfigError, match=f"initializer: dbn pretrains a multi-layer perceptron.*; {message}"):
            perceptron(model, (1, 8, 8))


REFUSED = {
    "model=cnn data=mnist_5k": r"multi-layer perceptron: .*; layers.0 is a Conv2d; take a model such as mlp",
    "model=resnet18 data=mnist_5k": r"multi-layer perceptron: .* is a Conv2d",
    "model=softmax": r"multi-layer perceptron: .*; there is no hidden layer here",
    "model=mlp regularization=batchnorm": r"; layers.0 has no bias; .* regularization.norm=none",
    "model=mlp regularization=layernorm": r"; norms.0 is a LayerNorm; .* regularization.norm=none",
    "initializer.k=0": r"initializer.k: must be a whole number >= 1, got 0",
    "initializer.epochs=0": r"initializer.epochs: must be a whole number >= 1, got 0",
    "initializer.momentum=1": r"initializer.momentum: must be a finite number >= 0 and < 1, got 1",
    "initializer.final_momentum=-0.1": r"initializer.final_momentum: must be .* >= 0 and < 1, got -0.1",
    "initializer.lr=0": r"initializer.lr: must be a finite number > 0, got 0",
    "initializer.weight_cost=-1": r"initializer.weight_cost: must be a finite number >= 0",
    "initializer.held_out=1.0": r"initializer.held_out: must be a finite number > 0 and < 1",
    "data.n_train=1": r"initializer.held_out: must leave one of the 1 training images on each side",
    "initializer.visible=gauss": r"initializer.visible: 'gauss' is not one of: .*; did you mean 'gaussian'",
    "initializer.visible=gaussian": r"data.scale=unit; take data.scale=standard or initializer.visible=binary",
    "data.scale=standard": r"data.scale=standard; take data.scale=unit or initializer.visible=gaussian",
}


def test_what_it_cannot_serve_is_refused_before_any_run(project):
    base = [*DIGITS, "initializer=dbn"]
    lists = [[*base, *text.split()] for text in REFUSED]
    good = ["initializer.visible=gaussian data.scale=standard", "model=mlp_deep", "data.scale=none"]
    trainer = Trainer(threads=1)
    complaints = [trainer.complaint(one) for one in configurations(lists + [[*base, *text.split()] for text in good])]
    for text, complaint, rule in zip(REFUSED, complaints, REFUSED.values(), strict=False):
        assert complaint and re.search(rule, complaint), (text, complaint)
    assert complaints[len(REFUSED) :] == [None] * len(good)


def test_pixels_of_no_declared_scale_are_looked_at():
    with pytest.raises(
        ConfigError, match=r"binary units need pixels in \[0, 1\] \(data.scale=unit\), .* got \[0.0, 16.0\]"
    ):
        pretrain(mlp(), 16 * digits(), scale="none")
    with pytest.raises(ConfigError, match=r"gaussian units need .* \(data.scale=standard\), these have"):
        pretrain(mlp(), digits(), scale="none", visible="gaussian")
    assert pretrain(mlp(), digits(scale="standard"), scale="none", visible="gaussian")


def test_a_machine_that_diverges_is_a_result(project):
    config = configuration(*DIGITS, "initializer=dbn", "initializer.lr=1e30", "initializer.epochs=1")
    digest = train(config, project / "run")
    assert (digest.end["status"], digest.end["reason"]) == ("FINISHED", "diverged")


def test_a_deep_network_of_sigmoids_learns_only_if_it_is_pretrained(project):
    """Hinton et al. 2006, on 3,500 digits: 784-256-256-256-10 by plain SGD, from N(0, 0.01^2) or from machines."""
    base = ["data=mnist_5k", "model.widths=[256,256,256]", "model.activation=sigmoid", "optimizer=sgd"]
    base += ["optimizer.lr=0.1", "epochs=3", "stats=off", "tracking=none"]
    trainer, found = Trainer(threads=1), {}
    for name, how in {"normal": ["initializer.std=0.01"], "dbn": ["initializer.epochs=2"]}.items():
        digest = train(configuration(*base, f"initializer={name}", *how), project / name, trainer=trainer)
        found[name] = digest.end["metrics"]
    assert found["normal"]["test/accuracy"] < 0.2 and found["normal"]["test/loss"] > 2.29
    assert found["dbn"]["test/accuracy"] > 0.6 and found["dbn"]["test/loss"] < 1.5
    records, _ = spool.read(project / "dbn" / "spool.jsonl")
    assert [r["step"] for r in records if r["kind"] == "pretrain"] == [1, 2] * 3
