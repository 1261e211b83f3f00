"""Regularizers against closed forms, and the values that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from fanin import regularizers
from fanin.augmentation import Mixture
from fanin.data import Split
from fanin.errors import ConfigError
from fanin.objective import Objective
from fanin.randomness import Streams

CONF = Path(__file__).parent.parent / "conf"
NEUTRAL = yaml.safe_load((CONF / "config.yaml").read_text())["regularization"]
CHOICES = sorted(path.stem for path in (CONF / "regularization").glob("*.yaml"))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def make_objective(model: nn.Module, **settings: Any) -> Objective:
    images = torch.rand(8, 1, 4, 4, generator=Streams(0, 0).generator("split"))
    labels, rows = torch.arange(8) % 3, torch.arange(8)
    split = Split(images, labels, rows, rows, images, labels, classes=3)
    regularizer = regularizers.Regularizer(**{**vars(regularizers.NONE), **settings})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, optimizer, split, regularizer=regularizer, precision="fp32", chunk=None)
    objective.turn_to(rows)
    return objective


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_the_neutral_values_of_the_configuration_regularize_nothing() -> None:
    assert regularizers.build(**NEUTRAL) == regularizers.NONE


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_sets_the_keys_it_claims_and_no_other(name: str) -> None:
    choice = yaml.safe_load((CONF / "regularization" / f"{name}.yaml").read_text())
    keys = set(choice) - {"applied"}
    assert set(choice["applied"]) == (set() if name == "none" else {name})
    assert keys == set(choice["applied"].values()) <= set(NEUTRAL)
    assert all(choice[key] != NEUTRAL[key] for key in keys)
    regularizers.build(**{**NEUTRAL, **choice})


def test_l1_adds_the_sign_of_each_weight_to_its_gradient_and_nothing_to_biases() -> None:
    plain, penalised = make_model(), make_model()
    loss = make_objective(plain)()
    more = make_objective(penalised, l1=0.01)()
    total = 0.0
    for one, other in zip(plain.parameters(), penalised.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        expected = one.grad + (0.01 * one.detach().sign() if one.ndim > 1 else 0)
        torch.testing.assert_close(other.grad, expected)
        total += one.detach().abs().sum().item() if one.ndim > 1 else 0.0
    assert more.item() == pytest.approx(loss.item() + 0.01 * total, rel=1e-6)


def test_l2_adds_each_weight_to_its_gradient_and_half_its_square_to_the_loss_and_spares_biases() -> None:
    plain, penalised = make_model(), make_model()
    penalised.append(nn.Linear(3, 3, bias=False)), plain.append(nn.Identity())
    penalised[4].forward = lambda x: x  # a layer that is not used decays, too
    loss, more = make_objective(plain)(), make_objective(penalised, l2=0.5)()
    total = 0.0
    for (name, other), one in zip(penalised.named_parameters(), [*plain.parameters(), None], strict=True):
        gradient = one.grad if one is not None else torch.zeros(3, 3)
        torch.testing.assert_close(other.grad, gradient + (0.5 * other.detach() if other.ndim > 1 else 0), msg=name)
        total += other.detach().square().sum().item() if other.ndim > 1 else 0.0
    assert more.item() == pytest.approx(loss.item() + 0.25 * total, rel=1e-6)


def test_mixup_weighs_the_two_labels_like_the_two_images() -> None:
    objective = make_objective(make_model(), label_smoothing=0.2)
    objective.augment = lambda images: (images, Mixture(0.75, torch.arange(8).roll(1)))
    objective.turn_to(torch.arange(8))
    loss = objective()
    images, labels, others = objective.chunks[0]
    assert torch.equal(others, labels.roll(1))
    logits = make_model()(images).detach()
    target = 0.75 * F.one_hot(labels, 3) + 0.25 * F.one_hot(others, 3)
    plain = -(target * logits.log_softmax(1)).sum(1).mean()
    smooth = -((0.8 * target + 0.2 / 3) * logits.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(smooth.item(), rel=1e-6)
    assert objective.loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_label_smoothing_is_cross_entropy_against_softened_labels() -> None:
    model = make_model()
    objective = make_objective(model, label_smoothing=0.3)
    loss = objective()
    images, labels, _ = objective.chunks[0]
    logits = make_model()(images).detach()
    soft = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = F.cross_entropy(logits, labels)
    assert objective.loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_max_norm_scales_long_units_back_and_leaves_short_ones_alone() -> None:
    model = make_model()
    conv, linear = model[0], model[3]
    with torch.no_grad():
        conv.weight[0].mul_(100), linear.weight[1].mul_(100)
    filters, rows = conv.weight.detach().clone(), linear.weight.detach().clone()
    bias = linear.bias.detach().clone()
    regularizers.project_max_norm(regularizers.weights(model.parameters()), max_norm=2.0)
    for before, after in ((filters, conv.weight.detach()), (rows, linear.weight.detach())):
        norms = before.flatten(1).norm(dim=1)
        scale = torch.where(norms > 2, 2 / norms, 1.0)
        assert (scale < 1).any() and (scale == 1).any()
        expected = before * scale.view(-1, *[1] * (before.ndim - 1))
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(after[scale == 1], before[scale == 1])
    assert torch.equal(linear.bias, bias)


def test_gradient_clipping_bounds_the_global_norm_and_keeps_the_direction() -> None:
    plain, clipped, loose = make_model(), make_model(), make_model()
    make_objective(plain)()
    make_objective(clipped, gradient_clipping=0.01)()
    make_objective(loose, gradient_clipping=1e6)()
    flat, small, same = (torch.cat([g.flatten() for g in gradients(m)]) for m in (plain, clipped, loose))
    assert small.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(small / small.norm(), flat / flat.norm(), rtol=1e-4, atol=1e-6)
    assert torch.equal(flat, same)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 1.0}, "regularization.dropout: must be a finite number >= 0 and < 1, got 1.0"),
        ({"dropout": "half"}, "regularization.dropout"),
        ({"norm": "bach"}, "regularization.norm: 'bach' is not one of.*did you mean 'batch'"),
        ({"weight_decay": -1}, "regularization.weight_decay"),
        ({"l1": float("nan")}, "regularization.l1"),
        ({"label_smoothing": 1}, "regularization.label_smoothing"),
        ({"max_norm": 0}, "regularization.max_norm: must be a finite number > 0, or null"),
        ({"gradient_clipping": -1.0}, "regularization.gradient_clipping"),
        ({"groups": 0}, "regularization.groups: must be a whole number >= 1"),
        ({"norm_noise": -1}, "regularization.norm_noise"),
        ({"stochastic_depth": 1}, "regularization.stochastic_depth: must be a finite number >= 0 and < 1"),
        ({"l2": -1e-4}, "regularization.l2"),
        ({"input_dropout": 1.5}, "regularization.input_dropout"),
        ({"input_noise": "much"}, "regularization.input_noise"),
        ({"shift": 1.5}, "regularization.shift: must be a whole number >= 0"),
        ({"rotate": 181}, "regularization.rotate: must be a finite number >= 0 and <= 180, got 181"),
        ({"mixup": -0.2}, "regularization.mixup"),
        ({"weight_averaging": 1}, "regularization.weight_averaging"),
        ({"l2": 0.1, "weight_decay": 0.1}, "l2 and weight_decay are two forms of one thing.*got 0.1 and 0.1"),
        ({"patience": 0}, "regularization.patience: must be a whole number >= 1, or null"),
        ({"patience": 2.5}, "regularization.patience"),
        (
            {"applied": {"batchnorm": "norm", "layernorm": "norm"}},
            "batchnorm and layernorm both set regularization.norm",
        ),
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        regularizers.build(**{**NEUTRAL, **changes})


def test_a_shift_must_leave_something_of_the_images() -> None:
    chosen = regularizers.build(**{**NEUTRAL, "shift": 8})
    regularizers.check_images(chosen, shape=(1, 9, 28))
    with pytest.raises(ConfigError, match="regularization.shift: must leave something of images of 8x28, got 8"):
        regularizers.check_images(chosen, shape=(1, 8, 28))


def test_the_settings_of_a_norm_reach_the_model_only_with_that_norm() -> None:
    def chosen(norm: str) -> dict[str, Any]:
        return regularizers.layers(**{**NEUTRAL, "norm": norm, "groups": 5, "norm_noise": 0.5})

    assert [chosen(norm)["groups"] for norm in ("batch", "group", "noisy_batch")] == [1, 5, 1]
    assert [chosen(norm)["norm_noise"] for norm in ("batch", "group", "noisy_batch")] == [0.0, 0.0, 0.5]
