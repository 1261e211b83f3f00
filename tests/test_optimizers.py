"""Optimizers and schedules: built as asked, right by hand-computed steps, and refused with the reason."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler

from fanin import optimizers, regularizers, schedulers
from fanin.errors import ConfigError

CONF = Path(__file__).parent.parent / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml") if path.stem != "sparse_adam")
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
DECAYLESS = {"lbfgs", "rprop"}


def configured(group: str, name: str) -> tuple[Any, dict[str, Any]]:
    options = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return resolve_name(options.pop("_target_")), options


def build(name: str, model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    factory, options = configured("optimizer", name)
    return optimizers.build(factory, model.parameters(), **{"weight_decay": 0.0, **options, **changes})


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_convex_loss(name: str) -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = build(name, model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.weight.square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert closure() < 2.999


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_builds_on_the_meta_device_where_configurations_are_checked(name: str) -> None:
    with torch.device("meta"):
        model = make_model()
    assert build(name, model).param_groups


def descend(name: str, *, decayed: float) -> nn.Sequential:
    """Three steps of training by `name` with weight decay."""
    model = make_model()
    optimizer = build(name, model, weight_decay=decayed)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 5) * torch.tensor([[1.0], [2.0]])).square().sum()
        loss.backward()
        regularizers.decay(optimizer)
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return model


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - DECAYLESS))
def test_weight_decay_shrinks_weights_by_lr_times_decay_and_spares_biases_and_norm_scales(name: str) -> None:
    model = make_model()
    optimizer = build(name, model, weight_decay=0.25)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    regularizers.decay(optimizer)
    for key, parameter in model.named_parameters():
        shrunk = before[key] * (1 - optimizer.param_groups[0]["lr"] * 0.25)
        assert torch.equal(parameter, shrunk if parameter.ndim > 1 else before[key]), key


def test_weight_decay_with_adam_is_torchs_adamw_to_the_last_bit() -> None:
    reference = make_model()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.001, weight_decay=0.3, fused=True)
    optimizer.param_groups[0]["params"] = [p for p in reference.parameters() if p.ndim > 1]
    optimizer.add_param_group({"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0})
    for _ in range(3):
        optimizer.zero_grad()
        reference(torch.ones(2, 5) * torch.tensor([[1.0], [2.0]])).square().sum().backward()
        optimizer.step()
    for name in ("adam", "adamw"):
        model = descend(name, decayed=0.3)
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, dict(reference.named_parameters())[key]), (name, key)


def test_weight_decay_is_l2_for_plain_sgd_and_no_l2_for_momentum() -> None:
    """The two coincide where a step is the gradient's, and only there (Loshchilov & Hutter 2019, prop. 1 and 2)."""

    def weights(model: nn.Sequential) -> torch.Tensor:
        return torch.cat([layer.weight.detach().flatten() for layer in (model[0], model[3])])

    def coupled(name: str) -> torch.Tensor:
        model = make_model()
        optimizer = build(name, model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 5) * torch.tensor([[1.0], [2.0]])).square().sum().backward()
            regularizers.add_l2(regularizers.weights(model.parameters()), strength=0.3)
            optimizer.step()
        return weights(model)

    torch.testing.assert_close(weights(descend("sgd", decayed=0.3)), coupled("sgd"), rtol=1e-5, atol=1e-6)
    for name in ("momentum", "adam"):
        assert (weights(descend(name, decayed=0.3)) - coupled(name)).abs().max() > 1e-4


def test_adamw_without_weight_decay_is_adam() -> None:
    weights = []
    for name in ("adam", "adamw"):
        model = make_model()
        optimizer = build(name, model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 5) * torch.tensor([[1.0], [2.0]])).square().sum().backward()
            optimizer.step()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"])
def test_fused_kernels_are_taken_where_torch_has_them(name: str) -> None:
    assert build(name, make_model()).param_groups[0]["fused"] is True


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model[0].weight.requires_grad_(False)
    groups = build("sgd", model, weight_decay=0.1).param_groups
    assert model[0].weight not in {parameter for group in groups for parameter in group["params"]}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("adam", {"lr": 0}, "optimizer.lr: must be a finite number > 0, got 0"),
    ("adam", {"lr": "abc"}, "optimizer.lr: must be a finite number > 0, got 'abc'"),
    ("adam", {"lr": float("inf")}, "optimizer.lr"),
    ("adam", {"lr": float("nan")}, "optimizer.lr"),
    ("adam", {"lr": True}, "optimizer.lr"),
    ("adam", {"betas": [0.9, 1.0]}, "optimizer.betas"),
    ("adam", {"betas": [0.9]}, "optimizer.betas"),
    ("adam", {"epsilon": 1e-8}, "optimizer: 'epsilon' is not one of.*did you mean 'eps'"),
    ("momentum", {"momentum": 1.0}, "optimizer.momentum"),
    ("nesterov", {"momentum": 0.0}, "optimizer: SGD refuses its settings: Nesterov"),
    ("adam", {"batch": "half"}, "optimizer.batch: 'half' is not one of"),
    ("rprop", {"batch": "mini"}, "optimizer.batch: .*full"),
    ("rprop", {"weight_decay": 0.1}, "regularization.weight_decay: must be 0, for rprop's steps .* regularization=l2"),
    ("lbfgs", {"weight_decay": 0.1}, "regularization.weight_decay: must be 0, for lbfgs takes .* regularization=l2"),
    ("lbfgs", {"line_search_fn": "armijo"}, "optimizer.line_search_fn: must be null or strong_wolfe"),
    ("lbfgs", {"max_iter": 2.5}, "optimizer.max_iter: must be a whole number"),
    ("sparse_adam", {}, "sparse_adam cannot train here: .*sparse gradients"),
]


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED)
def test_settings_out_of_range_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, make_model(), **changes)


def schedule(
    name: str, optimizer: torch.optim.Optimizer, *, epochs: int = 4, steps: int = 5, **changes: Any
) -> schedulers.Schedule:
    factory, options = configured("scheduler", name)
    return schedulers.build(factory, optimizer, epochs=epochs, steps_per_epoch=steps, **{**options, **changes})


def rates(name: str, *, lr: float = 0.8, losses: tuple[float, ...] = (), **changes: Any) -> list[float]:
    """The learning rate of each of 4 x 5 steps."""
    optimizer = build("sgd", make_model(), lr=lr)
    schedule_ = schedule(name, optimizer, **changes)
    seen = []
    for epoch in range(4):
        for _ in range(5):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule_.after_step()
        schedule_.after_epoch(losses[epoch] if losses else 1.0)
    return seen


def test_no_schedule_leaves_the_rate_alone() -> None:
    assert rates("none") == [0.8] * 20


def test_step_divides_the_rate_every_few_epochs() -> None:
    expected = [0.8] * 10 + [0.08] * 10
    assert rates("step", step_size=2) == pytest.approx(expected)


def test_cosine_goes_down_half_a_wave_over_all_steps() -> None:
    expected = 0.4 * (1 + torch.cos(torch.pi * torch.arange(20, dtype=torch.float64) / 20))
    assert rates("cosine") == pytest.approx(expected.tolist())


def test_onecycle_rises_to_the_optimizers_rate_and_ends_near_zero() -> None:
    seen = rates("onecycle")
    assert seen[0] == pytest.approx(0.8 / 25)
    assert seen.index(max(seen)) == 5 and max(seen) == pytest.approx(0.8)  # at 30 % of 20 steps
    assert seen[-1] == pytest.approx(0.8 / 25 / 1e4)


def test_plateau_halves_the_rate_after_epochs_without_a_better_val_loss() -> None:
    seen = rates("plateau", losses=(1.0, 1.0, 1.0, 1.0), patience=1)
    assert seen[::5] == [0.8, 0.8, 0.8, 0.4]
    assert rates("plateau", losses=(4.0, 3.0, 2.0, 1.0), patience=1) == [0.8] * 20


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_every_schedule_goes_with_every_optimizer(name: str, optimizer_name: str) -> None:
    model = make_model()
    optimizer = build(optimizer_name, model)
    schedule_ = schedule(name, optimizer, epochs=2, steps=1)
    for _ in range(2):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.tensor([[1.0] * 5, [2.0] * 5])).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule_.after_step()
        schedule_.after_epoch(1.0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_onecycle_does_not_give_momentum_to_an_optimizer_without() -> None:
    plain, heavy = build("sgd", make_model()), build("momentum", make_model())
    schedule("onecycle", plain)
    schedule("onecycle", heavy)
    assert plain.param_groups[0]["momentum"] == 0
    assert heavy.param_groups[0]["momentum"] == 0.95


def test_a_schedule_from_torch_is_used_by_its_name_alone() -> None:
    optimizer = build("sgd", make_model(), lr=1.0)
    options = {"every": "epoch", "epochs": 3, "steps_per_epoch": 2, "gamma": 0.5}
    exponential = schedulers.build(lr_scheduler.ExponentialLR, optimizer, **options)
    optimizer.step()
    exponential.after_epoch(0.0)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("step", {"step_size": 0}, "scheduler.step_size: must be a whole number >= 1"),
        ("step", {"gama": 0.1}, "scheduler: 'gama' is not one of.*did you mean 'gamma'"),
        ("step", {"every": "year"}, "scheduler.every: 'year' is not one of"),
        ("cosine", {"every": "val/loss"}, "scheduler.every: val/loss goes with ReduceLROnPlateau"),
        ("plateau", {"every": "epoch"}, "scheduler.every: val/loss goes with ReduceLROnPlateau"),
        ("plateau", {"factor": 2.0}, "scheduler: ReduceLROnPlateau refuses its settings"),
        ("onecycle", {"pct_start": 1.5}, "scheduler.pct_start"),
    ],
)
def test_schedules_out_of_range_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schedule(name, build("sgd", make_model()), **changes)
