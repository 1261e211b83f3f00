"""Residual models against formulas written out, and the closed form of what a block does to a signal."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import STREAMS, build, images
from initialized import initialize
from torch import Tensor, nn

from fanin import initializers, models
from fanin.errors import ConfigError
from fanin.models.dropout import StochasticDepth
from fanin.models.residual import BRANCHES, Block
from fanin.randomness import Streams

CONF = Path(__file__).parent.parent / "conf"
RESIDUAL = ["resmlp", "rescnn"]


def blocks_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Block)]


def disturb(model: nn.Module) -> None:
    """Give every parameter a value of its own, the learned numbers in the branches among them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def by_hand(block: Any, x: Tensor, *, branch: str, scale: float) -> Tensor:
    parts = block.branch
    if branch == "fixup":
        inside = torch.tanh(parts.first(x + parts.shift_first.bias) + parts.shift_activation.bias)
        return x + parts.gate.weight * parts.last(inside + parts.shift_last.bias) + parts.shift_end.bias
    factor = {"plain": 1.0, "scaled": scale, "gated": parts.gate.weight if branch == "gated" else None}[branch]
    return x + factor * parts.last(torch.tanh(parts.first(x)))


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_residual_mlp_is_its_formula(branch: str) -> None:
    model, x = build("resmlp", width=7, depth=3, branch=branch, activation="tanh"), images()
    disturb(model)
    expected = torch.tanh(model.stem(x.reshape(8, 784)))
    for block in blocks_of(model):
        expected = by_hand(block, expected, branch=branch, scale=1 / math.sqrt(3))
    torch.testing.assert_close(model(x), model.head(expected))


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_residual_cnn_is_its_formula(branch: str) -> None:
    model, x = build("rescnn", channels=[3, 5], depth=2, branch=branch, activation="tanh"), images()
    disturb(model)
    expected = x
    for step, stage in zip(model.steps, model.stages, strict=True):
        expected = torch.tanh(F.conv2d(expected, step.weight, step.bias, stride=2, padding=1))
        for block in stage:
            expected = by_hand(block, expected, branch=branch, scale=1 / math.sqrt(4))
    assert expected.shape == (8, 5, 7, 7)
    torch.testing.assert_close(model(x), model.head(expected.mean((2, 3))))


@pytest.mark.parametrize("name", RESIDUAL)
def test_the_learned_numbers_of_a_branch_are_neutral_until_an_initializer_sets_them(name: str) -> None:
    plain, x = build(name), images()
    for block in blocks_of(plain):
        nn.init.zeros_(block.branch.first.bias), nn.init.zeros_(block.branch.last.bias)
    for branch in ("gated", "fixup"):
        model = build(name, branch=branch)
        same = {key: value for key, value in plain.state_dict().items() if key in model.state_dict()}
        model.load_state_dict(same, strict=False)
        assert torch.equal(model(x), plain(x))


def test_a_branch_has_as_many_learned_numbers_as_its_initializer_needs() -> None:
    def numbers(branch: str) -> int:
        return sum(p.numel() for block in blocks_of(build("resmlp", branch=branch)) for p in block.parameters())

    weights, biases = 8 * 2 * 128 * 128, 8 * 2 * 128
    assert {branch: numbers(branch) for branch in BRANCHES} == {
        "plain": weights + biases,
        "scaled": weights + biases,
        "gated": weights + biases + 8,
        "fixup": weights + 8 * 5,
    }


def gain(model: nn.Module, *, first: Any, last: Any) -> float:
    """By how much the model's only block multiplies the second moment of a signal."""
    [block] = blocks_of(model)
    for layer, function in ((block.branch.first, first), (block.branch.last, last)):
        function(layer.weight.data)
        nn.init.zeros_(layer.bias)
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return (block(x).square().mean() / x.square().mean()).item()


def test_a_relu_block_multiplies_the_second_moment_by_1_plus_half_the_product_of_its_scales() -> None:
    """E|x + W2 relu(W1 x)|^2 / |x|^2 = 1 + c1 c2 / 2 for variances c1 / fan_in and c2 / fan_in: W2 has mean 0."""

    def scaled(factor: float, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return lambda weight: weight.normal_(0, math.sqrt(factor / weight.shape[1]), generator=generator)

    plain, half = build("resmlp", width=1024, depth=1), build("resmlp", width=1024, depth=1, branch="scaled", scale=0.5)
    assert gain(plain, first=scaled(2, 0), last=scaled(1, 1)) == pytest.approx(2.0, rel=0.05)  # He, then LeCun
    assert gain(plain, first=scaled(2, 2), last=scaled(2, 3)) == pytest.approx(3.0, rel=0.05)
    assert gain(plain, first=scaled(1, 4), last=scaled(0.5, 5)) == pytest.approx(1.25, rel=0.05)
    assert gain(half, first=scaled(2, 0), last=scaled(1, 1)) == pytest.approx(1 + 0.25, rel=0.05)


def test_scaled_branches_keep_a_deep_network_within_a_factor_e_where_plain_ones_explode() -> None:
    """prod(1 + 1 / L) -> e under He and LeCun, and 2^L without the scale."""

    def growth(branch: str, depth: int) -> float:
        model = build("resmlp", width=256, depth=depth, branch=branch)
        he, lecun = (initializers.bind(initializers.he_normal, dict(gain=g, mode="fan_in")) for g in (2**0.5, 1.0))
        for number, block in enumerate(blocks_of(model)):
            generator = torch.Generator().manual_seed(number)
            he(block.branch.first.weight.data, generator=generator)
            lecun(block.branch.last.weight.data, generator=generator)
            nn.init.zeros_(block.branch.first.bias), nn.init.zeros_(block.branch.last.bias)
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(99))
        with torch.no_grad():
            return (model.blocks(x).square().mean() / x.square().mean()).item()

    assert growth("scaled", 32) == pytest.approx((1 + 1 / 32) ** 32, rel=0.1)
    assert 2**32 / 10 < growth("plain", 32) < 2**32 * 10


@pytest.mark.parametrize("name", RESIDUAL)
def test_later_branches_are_dropped_more_often_in_training_and_none_in_evaluation(name: str) -> None:
    model, x = build(name, stochastic_depth=0.4), images()
    count = len(blocks_of(model))
    drops = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert drops == pytest.approx([0.4 * number / count for number in range(1, count + 1)])
    models.seed_noise(model, STREAMS)
    assert not torch.equal(model(x), model(x))
    plain = build(name)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_an_image_whose_branch_is_dropped_passes_the_block_unchanged() -> None:
    model = build("resmlp", width=16, depth=1, stochastic_depth=0.5)
    models.seed_noise(model, STREAMS)
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    [block] = blocks_of(model)
    with torch.no_grad():
        output, branch = block(x), block.eval()(x) - x
    skipped = (output == x).all(1)
    assert 0.4 < skipped.double().mean().item() < 0.6
    torch.testing.assert_close(output[~skipped], (x + 2 * branch)[~skipped])


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("name", RESIDUAL)
def test_norm_and_dropout_go_between_the_two_layers_of_a_branch(name: str, norm: str, branch: str) -> None:
    model = build(name, norm=norm, dropout=0.25, branch=branch)
    for block in blocks_of(model):
        names = [part for part, _ in block.branch.named_children() if not part.startswith(("shift", "scale", "gate"))]
        assert names == ["first", "norm", "activation", "dropout", "last", "drop"]
        assert block.branch.dropout.p == 0.25 and not isinstance(block.branch.norm, nn.Identity)
        assert (block.branch.first.bias is None) == (norm == "batch" or branch == "fixup")
    outside = [model.norm] if name == "resmlp" else list(model.norms)
    assert not any(isinstance(module, nn.Identity) for module in outside)
    assert model(images()).isfinite().all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resmlp", dict(depth=0), "model.depth: must be a whole number >= 1, got 0"),
        ("resmlp", dict(width="128"), "model.width: must be a whole number >= 1, got '128'"),
        ("resmlp", dict(branch="gate"), "model.branch: 'gate' is not one of: .*did you mean 'gated'"),
        ("resmlp", dict(scale=0.25), "model.scale: must be null, or with model.branch=scaled a number > 0, got 0.25"),
        ("rescnn", dict(branch="scaled", scale=0), "model.scale: must be null"),
        ("rescnn", dict(channels=[]), "model.channels: must name a stage"),
        ("rescnn", dict(channels=16), "model.channels: must be a list of positive integers"),
        ("rescnn", dict(depth=True), "model.depth: must be a whole number"),
        ("rescnn", dict(activation="rleu"), "model.activation: 'rleu' .* did you mean 'relu'"),
    ],
)
def test_options_that_make_no_residual_network_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(name, **changes)


# Initializers of residual branches.

IDENTITIES = {"fixup": "fixup", "rezero": "gated", "skipinit": "gated"}  # and the branch they need


def initialized(model: nn.Module, name: str, *, streams: Streams = STREAMS, **changes: Any) -> Any:
    initialize(model, name, images=images(), labels=torch.arange(8), streams=streams, **changes)
    return model


@pytest.mark.parametrize("initializer", IDENTITIES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", RESIDUAL)
def test_every_block_starts_as_exactly_the_identity_however_many_there_are(
    name: str, activation: str, initializer: str
) -> None:
    model = initialized(build(name, depth=20, branch=IDENTITIES[initializer], activation=activation), initializer)
    passed: list[tuple[Tensor, Tensor]] = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda _, inputs, output: passed.append((inputs[0], output)))
    model(images())
    assert len(passed) == len(blocks_of(model)) >= 20
    assert all(torch.equal(before, after) and before.any() for before, after in passed)


@pytest.mark.parametrize("depth", [1, 9])
@pytest.mark.parametrize("name", RESIDUAL)
def test_fixup_shrinks_the_first_layers_and_zeroes_the_last_ones_and_the_logits(name: str, depth: int) -> None:
    """Std sqrt(2 / fan_in) L^(-1 / (2 m - 2)) with m = 2 layers a branch, and L branches."""
    model = build(name, depth=depth, branch="fixup")
    disturb(model)
    initialized(model, "fixup")
    reference = initialized(build(name, depth=depth), "he_normal")
    count = len(blocks_of(model))
    assert count == depth * (1 if name == "resmlp" else 2)
    for block, he in zip(blocks_of(model), blocks_of(reference), strict=True):
        parts, weight = block.branch, block.branch.first.weight
        torch.testing.assert_close(weight, he.branch.first.weight / math.sqrt(count))
        std = math.sqrt(2 / weight[0].numel() / count)
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
        assert not parts.last.weight.any()
        assert [n.item() for n in (parts.gate.weight, parts.shift_first.bias, parts.shift_activation.bias)] == [1, 0, 0]
        assert [n.item() for n in (parts.shift_last.bias, parts.shift_end.bias)] == [0, 0]
    assert not model.head.weight.any()
    assert F.cross_entropy(model(images()), torch.arange(8)).item() == pytest.approx(math.log(10))


def test_skipinit_and_rezero_set_the_numbers_that_multiply_the_branches_and_leave_the_weights_to_others() -> None:
    he, xavier = (initialized(build("resmlp"), name) for name in ("he_normal", "xavier_normal"))
    skipped = initialized(build("resmlp", branch="gated"), "skipinit", alpha=0.25)
    rezero = initialized(build("resmlp", branch="gated"), "rezero")
    for model, reference, alpha in ((skipped, he, 0.25), (rezero, xavier, 0.0)):
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in reference.state_dict().items())
        assert {block.branch.gate.weight.item() for block in blocks_of(model)} == {alpha}


@pytest.mark.parametrize("initializer", IDENTITIES)
def test_a_network_of_32_blocks_learns_from_each_of_them_and_every_parameter_moves(initializer: str) -> None:
    model = initialized(build("resmlp", width=16, depth=32, branch=IDENTITIES[initializer]), initializer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    x, labels = images(), torch.arange(8)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 3 and losses[-1] < 0.3
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("initializer", IDENTITIES)
def test_branches_without_numbers_to_set_are_refused_with_the_branch_that_has_them(initializer: str) -> None:
    rule = (
        f"initializer: {initializer} sets learned numbers in the branches: take model.branch={IDENTITIES[initializer]}"
    )
    with pytest.raises(ConfigError, match=rule):
        initialized(build("resmlp"), initializer)


def test_an_alpha_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="initializer.alpha: must be a finite number, got 'zero'"):
        initialized(build("resmlp", branch="gated"), "skipinit", alpha="zero")
