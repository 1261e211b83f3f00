"""The loop against hand-written ones, and what it trains against closed forms."""

import math
import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fitted import SPLIT, STREAMS, TRAIN, Run, make_model
from torch import Tensor, nn

from fanin import augmentation
from fanin.data import Split
from fanin.errors import ConfigError
from fanin.evaluation import evaluate
from fanin.memory import keep_freed_memory
from fanin.order import batch_sizes
from fanin.precision import flushes_denormals
from fanin.train import check


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
