"""The loop against hand-written ones, and the promises about bits: statistics, interruption, order."""

import io
import math
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin import augmentation, optimizers, regularizers, schedulers
from fanin.data import Split
from fanin.errors import ConfigError
from fanin.evaluation import evaluate
from fanin.memory import keep_freed_memory
from fanin.models.dropout import Dropout
from fanin.models.noise import noise_state, seed_noise
from fanin.models.norm import NoisyBatchNorm1d
from fanin.objective import Objective
from fanin.order import batch_sizes
from fanin.precision import flushes_denormals
from fanin.randomness import Streams
from fanin.stats import LayerStats
from fanin.train import EpochRecord, Progress, capture, check, fit, restore

STREAMS = Streams(seed=3, replicate=1)
TRAIN, VAL = 130, 40
NOT_COMPARED = {"seconds"}


def make_split() -> Split:
    """A learnable problem: the class is the brighter third of the picture."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(TRAIN + VAL + 30, 1, 6, 6, generator=generator)
    labels = images.flatten(1).unflatten(1, (3, 12)).mean(2).argmax(1)
    end = TRAIN + VAL
    order = torch.randperm(end, generator=generator)
    return Split(images[:end], labels[:end], order[VAL:], order[:VAL], images[end:], labels[end:], classes=3)


SPLIT = make_split()


def make_model(*, noisy: bool = False, norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(11)
    noise = [norm or nn.BatchNorm1d(16), nn.ReLU(), Dropout(0.3), nn.Dropout(0.2)] if noisy else [nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), *noise, nn.Linear(16, 3))
    seed_noise(model, STREAMS)
    return model


class Run:
    """A model with what trains it; the keywords are those of the builders and of `fit`."""

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        factory: Any = torch.optim.Adam,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        batch: str = "mini",
        batch_size: int = 32,
        epochs: int = 4,
        schedule: dict[str, Any] | None = None,
        stats: bool = False,
        options: dict[str, Any] | None = None,
        precision: str = "fp32",
        split: Split = SPLIT,
        **regularizer: Any,
    ):
        self.model = model or make_model()
        self.optimizer = optimizers.build(
            factory,
            self.model.parameters(),
            lr=lr,
            weight_decay=weight_decay,
            batch=batch,
            **(options or {}),
        )
        schedule = schedule or {
            "factory": torch.optim.lr_scheduler.ConstantLR,
            "every": "epoch",
            "factor": 1.0,
        }
        steps = len(batch_sizes(len(split.train), batch_size=batch_size, batch=batch))
        self.scheduler = schedulers.build(optimizer=self.optimizer, epochs=epochs, steps_per_epoch=steps, **schedule)
        probe = split.val[:20]
        self.progress = Progress()
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "batch": batch,
            "batch_size": batch_size,
            "precision": precision,
            "streams": STREAMS,
            "scheduler": self.scheduler,
            "regularizer": regularizers.Regularizer(**{**vars(regularizers.NONE), **regularizer}),
            "stats": LayerStats(self.model, images=split.images[probe], labels=split.labels[probe]) if stats else None,
        }
        self.split = split

    def records(self) -> Iterator[EpochRecord]:
        return fit(self.model, self.optimizer, self.split, progress=self.progress, **self.settings)

    def all(self) -> list[EpochRecord]:
        return list(self.records())

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


def metrics(records: list[EpochRecord]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.metrics.items() if k not in NOT_COMPARED} for record in records]


def test_fit_equals_the_loop_written_by_hand() -> None:
    run = Run(epochs=3)
    records = run.all()

    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for epoch in (1, 2, 3):
        shuffle = torch.randperm(TRAIN, generator=STREAMS.generator("order", f"epoch {epoch}"))
        order, losses, hits = SPLIT.train[shuffle], [], 0
        for start in range(0, TRAIN, 32):
            rows = order[start : start + 32]
            logits = model(SPLIT.images[rows])
            optimizer.zero_grad()
            loss = F.cross_entropy(logits, SPLIT.labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(rows))
            hits += int((logits.argmax(1) == SPLIT.labels[rows]).sum())
        assert records[epoch].metrics["train/loss"] == pytest.approx(sum(losses) / TRAIN, rel=1e-12)
        assert records[epoch].metrics["train/accuracy"] == pytest.approx(hits / TRAIN, rel=1e-12)
    assert torch.equal(run.weights(), nn.utils.parameters_to_vector(model.parameters()))
    assert [record.epoch for record in records] == [0, 1, 2, 3]
    assert run.progress.ended == "epochs"
    assert all(record.metrics["diverged"] == 0 for record in records)


def test_training_learns() -> None:
    records = Run(epochs=40).all()
    assert records[-1].metrics["val/accuracy"] > 0.8 > 0.6 > records[0].metrics["val/accuracy"]


def test_epoch_0_is_the_untrained_network() -> None:
    run = Run()
    record = next(run.records())
    logits = make_model()(SPLIT.images[SPLIT.train])
    labels = SPLIT.labels[SPLIT.train]
    assert record.epoch == 0
    assert record.metrics["train/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert record.metrics["train/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean())
    assert record.metrics["seconds"] == 0
    assert record.metrics["optimizer/lr"] == 0.01


def test_evaluation_counts_every_image_once_whatever_the_batch_size() -> None:
    model = make_model(noisy=True).eval()
    logits = model(SPLIT.test_images).detach().double()
    for size in (1, 7, 30, 1000):
        found = evaluate(model, SPLIT.test_images, SPLIT.test_labels, batch_size=size)
        assert found.loss == pytest.approx(F.cross_entropy(logits, SPLIT.test_labels).item(), rel=1e-6)
        assert found.accuracy == (logits.argmax(1) == SPLIT.test_labels).double().mean().item()
        assert torch.equal(found.predicted, logits.argmax(1))
    part = torch.tensor([4, 2, 9])
    chosen = evaluate(model, SPLIT.test_images, SPLIT.test_labels, index=part)
    assert torch.equal(chosen.predicted, logits.argmax(1)[part])


def test_evaluation_leaves_modes_buffers_and_random_state_as_they_were() -> None:
    class Restless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(()) * 0  # draws from the global stream in evaluation, too

    model = nn.Sequential(make_model(noisy=True), Restless())
    model.train()
    model[0][2].eval()  # a frozen batch norm stays frozen
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluate(model, SPLIT.test_images, SPLIT.test_labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


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


def test_a_step_on_augmented_images_is_a_step_on_the_images_made_by_hand() -> None:
    run = Run(factory=torch.optim.SGD, lr=0.1, epochs=1, batch_size=TRAIN, input_dropout=0.3, shift=1)
    run.all()
    model, order = make_model(), STREAMS.generator("order", "epoch 1")
    rows = SPLIT.train[torch.randperm(TRAIN, generator=order)]
    images = augmentation.shift(
        SPLIT.images[rows], most=1, generator=STREAMS.generator("augmentation", "shift epoch 1")
    )
    kept = torch.rand(images.shape, generator=STREAMS.generator("augmentation", "input_dropout epoch 1")) < 0.7
    F.cross_entropy(model(images * kept / 0.7), SPLIT.labels[rows]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(run.weights(), nn.utils.parameters_to_vector(model.parameters()).detach())


def test_averaged_weights_are_evaluated_and_kept_and_the_others_trained() -> None:
    plain, averaged = Run(epochs=3), Run(epochs=3, weight_averaging=0.9, stats=True)
    steps: list[Tensor] = []
    plain.optimizer.register_step_post_hook(lambda *_: steps.append(plain.weights()))
    average = plain.weights().double()
    records, other = plain.all(), averaged.all()
    assert torch.equal(plain.weights(), averaged.weights())
    for number, weights in enumerate(steps, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights.double()
    model = make_model()
    model.load_state_dict(averaged.progress.average)
    torch.testing.assert_close(
        nn.utils.parameters_to_vector(model.parameters()).double(), average, rtol=1e-5, atol=1e-6
    )
    found = evaluate(model, SPLIT.images, SPLIT.labels, index=SPLIT.val)
    assert other[-1].metrics["val/loss"] == found.loss != records[-1].metrics["val/loss"]
    assert other[-1].metrics["train/loss"] == records[-1].metrics["train/loss"]
    assert other[-1].metrics["weight/1/norm"] == pytest.approx(averaged.model[1].weight.norm().item(), rel=1e-6)
    best = averaged.progress.best_state
    assert averaged.progress.best_epoch == 3 and torch.equal(best["1.weight"], averaged.progress.average["1.weight"])


def test_weight_decay_acts_between_gradient_and_step() -> None:
    run = Run(factory=torch.optim.SGD, lr=0.1, weight_decay=0.5, epochs=1, batch_size=TRAIN)
    run.all()
    model = make_model()
    F.cross_entropy(model(SPLIT.images[SPLIT.train]), SPLIT.labels[SPLIT.train]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 - 0.1 * 0.5 if parameter.ndim > 1 else 1).sub_(0.1 * parameter.grad)
    torch.testing.assert_close(run.weights(), nn.utils.parameters_to_vector(model.parameters()).detach())


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


def test_a_last_batch_of_one_joins_the_batch_before_it() -> None:
    assert batch_sizes(130, batch_size=32) == [32, 32, 32, 32, 2]
    assert batch_sizes(129, batch_size=32) == [32, 32, 32, 33]
    assert batch_sizes(128, batch_size=32) == [32, 32, 32, 32]
    assert batch_sizes(20, batch_size=32) == [20]
    assert batch_sizes(3, batch_size=1) == [1, 1, 1]
    assert batch_sizes(1, batch_size=5) == [1]
    assert batch_sizes(130, batch_size=32, batch="full") == [130]


def test_a_full_batch_step_is_gradient_descent_on_the_whole_training_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanin.train.EVALUATION_BATCH", 50)  # chunks of 50, 50 and 30
    model = make_model().double()
    images = SPLIT.images.double()
    split = Split(images, SPLIT.labels, SPLIT.train, SPLIT.val, SPLIT.test_images, SPLIT.test_labels, classes=3)
    run = Run(model=model, factory=torch.optim.SGD, lr=0.5, batch="full", epochs=1, split=split, l1=1e-3)
    record = run.all()[1]

    hand = make_model().double()
    loss = F.cross_entropy(hand(images[SPLIT.train]), SPLIT.labels[SPLIT.train])
    weights = [p for p in hand.parameters() if p.ndim > 1]
    (loss + 1e-3 * sum(w.abs().sum() for w in weights)).backward()
    with torch.no_grad():
        for parameter in hand.parameters():
            parameter -= 0.5 * parameter.grad
    assert record.metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(run.weights(), nn.utils.parameters_to_vector(hand.parameters()).detach())


def test_lbfgs_solves_logistic_regression_where_the_gradient_vanishes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    options = {"max_iter": 20, "history_size": 10, "line_search_fn": "strong_wolfe"}
    run = Run(
        model=model.double(),
        factory=torch.optim.LBFGS,
        lr=1.0,
        batch="full",
        epochs=12,
        options=options,
        split=Split(**{**vars(SPLIT), "images": SPLIT.images.double()}),
        l1=0.0,
        label_smoothing=0.2,
    )
    run.all()
    loss = F.cross_entropy(model(SPLIT.images[SPLIT.train].double()), SPLIT.labels[SPLIT.train], label_smoothing=0.2)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-5


def test_training_loss_is_plain_cross_entropy_whatever_the_objective_adds() -> None:
    regularized = Run(epochs=1, batch_size=TRAIN, label_smoothing=0.3, l1=0.1).all()[1]
    plain = Run(epochs=1, batch_size=TRAIN).all()[1]
    assert regularized.metrics["train/loss"] == plain.metrics["train/loss"]  # one step: from the same weights


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_diverging_run_is_recorded_and_ends(lr: float) -> None:
    run = Run(factory=torch.optim.SGD, lr=lr, stats=True)
    records = run.all()
    last = records[-1].metrics
    assert len(records) == 2 and last["diverged"] == 1 and run.progress.ended == "diverged"
    assert not (math.isfinite(last["train/loss"]) and math.isfinite(last["val/loss"]))
    assert run.progress.best_epoch == 0
    assert all(torch.isfinite(value).all() for value in run.progress.best_state.values())
    assert run.all() == []  # it stays ended


def test_early_stopping_ends_after_patience_epochs_without_a_better_val_loss() -> None:
    run = Run(factory=torch.optim.SGD, lr=0.1, epochs=50, patience=3)
    losses = [record.metrics["val/loss"] for record in run.all()]
    best = losses.index(min(losses))
    assert 0 < best < 46 and run.progress.ended == "early_stopping"
    assert run.progress.best_epoch == best == len(losses) - 1 - 3
    assert run.progress.best_loss == losses[best]


def test_best_state_holds_the_weights_of_the_best_epoch() -> None:
    run, kept = Run(factory=torch.optim.SGD, lr=0.3, epochs=12), {}
    for record in run.records():
        kept[record.epoch] = run.weights()
    assert 0 < run.progress.best_epoch < 12  # else the test tests nothing
    model = make_model()
    model.load_state_dict(run.progress.best_state)
    best = nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(best, kept[run.progress.best_epoch])
    found = evaluate(model, SPLIT.images, SPLIT.labels, index=SPLIT.val)
    assert found.loss == pytest.approx(run.progress.best_loss, rel=1e-12)


def test_bf16_trains_close_to_fp32_with_float32_weights() -> None:
    exact, rounded = (Run(epochs=5, precision=precision) for precision in ("fp32", "bf16"))
    one, other = exact.all()[-1].metrics, rounded.all()[-1].metrics
    assert one["train/loss"] != other["train/loss"]
    assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.model.parameters())


def test_denormals_are_flushed_in_training_only() -> None:
    assert not flushes_denormals()
    seen = []
    run = Run(epochs=1)
    run.model.register_forward_hook(lambda *_: seen.append(flushes_denormals()))
    for _ in run.records():
        assert not flushes_denormals()
    assert all(seen)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": -1}, "epochs: must be a whole number"),
        ({"batch_size": 0}, "batch_size: must be a whole number"),
        ({"batch_size": 2.5}, "batch_size: must be a whole number"),
        ({"precision": "fp16"}, "hardware.precision: 'fp16' is not one of"),
        ({"precision": "tf32"}, "hardware.precision: tf32 exists on cuda only"),
        ({"batch_size": 1}, "batch_size: batch norm needs at least 2"),
        ({"count": 1}, "batch_size: batch norm needs at least 2"),
    ],
)
def test_settings_it_cannot_train_with_are_refused(settings: dict[str, Any], words: str) -> None:
    fine: dict[str, Any] = {"epochs": 1, "batch_size": 10, "batch": "mini", "count": 100}
    fine |= {"precision": "fp32", "device": "cpu"}
    check(make_model(noisy=True), **fine)
    with pytest.raises(ConfigError, match=words):
        check(make_model(noisy=True), **{**fine, **settings})


def test_memory_is_kept_where_glibc_is() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
