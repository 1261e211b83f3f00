"""What may not change a bit of a run: statistics, an interruption, draws of the caller; and what keeps its order."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fitted import SPLIT, STREAMS, Run, make_model, metrics
from torch import Tensor, nn

from fanin import schedulers
from fanin.models.noise import noise_state
from fanin.models.norm import NoisyBatchNorm1d
from fanin.objective import Objective
from fanin.randomness import Streams
from fanin.train import capture, restore


def test_statistics_do_not_change_one_bit_of_the_weights() -> None:
    plain, measured = (
        Run(model=make_model(noisy=True), stats=stats, epochs=3, max_norm=1.0) for stats in (False, True)
    )
    records, more = plain.all(), measured.all()
    assert torch.equal(plain.weights(), measured.weights())
    for one, other in zip(metrics(records), metrics(more), strict=True):
        assert one.items() <= other.items()
        assert "weight/1/std" in other
    state, other_state = plain.model.state_dict(), measured.model.state_dict()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


AUGMENTED: dict[str, Any] = {"rotate": 5.0, "shift": 1, "mixup": 0.4, "input_noise": 0.05, "input_dropout": 0.1}

VARIANTS: dict[str, Callable[[], Run]] = {
    "adam, cosine, all noise": lambda: Run(
        model=make_model(noisy=True),
        schedule={"factory": torch.optim.lr_scheduler.CosineAnnealingLR, "every": "step", "eta_min": 0.0},
        stats=True,
        label_smoothing=0.1,
        l1=1e-4,
    ),
    "augmented, averaged": lambda: Run(
        model=make_model(noisy=True, norm=NoisyBatchNorm1d(16, noise=1.0)),
        weight_decay=0.1,
        stats=True,
        weight_averaging=0.9,
        **AUGMENTED,
    ),
    "momentum, one cycle": lambda: Run(
        factory=torch.optim.SGD,
        options={"momentum": 0.9},
        weight_decay=1e-3,
        schedule={
            "factory": schedulers.onecycle,
            "every": "step",
            "pct_start": 0.3,
            "div_factor": 25.0,
            "final_div_factor": 1e4,
        },
    ),
    "sgd, plateau": lambda: Run(
        factory=torch.optim.SGD,
        lr=0.5,
        schedule={
            "factory": torch.optim.lr_scheduler.ReduceLROnPlateau,
            "every": "val/loss",
            "factor": 0.5,
            "patience": 0,
        },
    ),
    "lbfgs": lambda: Run(
        factory=torch.optim.LBFGS,
        lr=1.0,
        batch="full",
        options={"max_iter": 4, "line_search_fn": "strong_wolfe"},
    ),
    "asgd, steps": lambda: Run(
        factory=torch.optim.ASGD,
        schedule={"factory": torch.optim.lr_scheduler.StepLR, "every": "epoch", "step_size": 2, "gamma": 0.1},
    ),
    "rprop": lambda: Run(factory=torch.optim.Rprop, lr=0.001, batch="full"),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("killed_after", [0, 2])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name: str, killed_after: int) -> None:
    whole = VARIANTS[name]()
    expected = whole.all()

    first = VARIANTS[name]()
    records, file = [], io.BytesIO()
    for record in first.records():
        records.append(record)
        if record.epoch == killed_after:
            torch.save(capture(first.model, first.optimizer, first.scheduler, first.progress), file)
            break
    torch.manual_seed(99)  # another process, in another state

    file.seek(0)
    second = VARIANTS[name]()
    state = torch.load(file, weights_only=True, map_location="cpu")
    second.progress = restore(state, second.model, second.optimizer, second.scheduler)
    records += second.all()

    assert metrics(records) == metrics(expected)
    assert torch.equal(second.weights(), whole.weights())
    assert second.progress.best_epoch == whole.progress.best_epoch
    best, same = whole.progress.best_state, second.progress.best_state
    assert best.keys() == same.keys() and all(torch.equal(best[key], same[key]) for key in best)
    assert records[-1].metrics["seconds"] > records[killed_after].metrics["seconds"]


@pytest.mark.parametrize("settings", [{kind: value} for kind, value in AUGMENTED.items()] + [{"weight_averaging": 0.9}])
def test_a_regularizer_changes_neither_batch_order_nor_dropout_masks(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    turn_to, rows = Objective.turn_to, []
    monkeypatch.setattr(Objective, "turn_to", lambda self, index: (rows.append(index.tolist()), turn_to(self, index)))
    plain, other = Run(model=make_model(noisy=True), epochs=2), Run(model=make_model(noisy=True), epochs=2, **settings)
    masks: dict[Run, list[Tensor]] = {plain: [], other: []}
    for run in (plain, other):
        dropout = run.model[4]
        dropout.register_forward_hook(
            lambda module, _, output, run=run: (
                masks[run].append(module.drop(torch.ones_like(output), shape=output.shape)) if module.training else None
            )
        )
        run.all()
    half = len(rows) // 2
    assert rows[:half] == rows[half:]
    assert all(torch.equal(a, b) for a, b in zip(masks[plain], masks[other], strict=True)) and len(masks[plain]) == half
    one, same = noise_state(plain.model), noise_state(other.model)
    assert one.keys() == same.keys() and all(torch.equal(one[key], same[key]) for key in one)


def test_a_finished_run_restored_has_nothing_left_to_do() -> None:
    run = Run(epochs=2)
    run.all()
    again = Run(epochs=2)
    again.progress = restore(
        capture(run.model, run.optimizer, run.scheduler, run.progress),
        again.model,
        again.optimizer,
        again.scheduler,
    )
    assert again.all() == []


def test_the_caller_may_draw_random_numbers_between_records() -> None:
    quiet, busy = (Run(model=make_model(noisy=True), epochs=3) for _ in range(2))
    quiet.all()
    for _ in busy.records():
        torch.rand(100)
    assert torch.equal(quiet.weights(), busy.weights())


def test_the_batch_order_does_not_depend_on_model_or_optimizer_but_on_epoch_and_replicate() -> None:
    def order(model: nn.Module, factory: Any, streams: Streams) -> list[Tensor]:
        seen = []
        run = Run(model=model, factory=factory, epochs=2)
        run.settings["streams"] = streams
        model.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()) if m.training else None)
        run.all()
        return seen

    one = order(make_model(), torch.optim.Adam, STREAMS)
    other = order(make_model(noisy=True), torch.optim.SGD, STREAMS)
    replicate = order(make_model(), torch.optim.Adam, Streams(seed=3, replicate=2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], replicate[0])
    steps = len(one) // 2
    first, second = torch.cat(one[:steps]), torch.cat(one[steps:])
    assert not torch.equal(first, second)
    expected = SPLIT.images[SPLIT.train].flatten(1).sum(1).sort().values
    for epoch in (first, second):  # each training image once, none of validation or test
        assert torch.equal(epoch.flatten(1).sum(1).sort().values, expected)
