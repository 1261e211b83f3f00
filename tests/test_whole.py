"""Initializers of whole models: what they are given, when they are called, and how their curves are recorded."""

import pytest
import torch
from recorded import make_run, make_study, new_database, stored
from recorded import train as recorded_train
from trained import SMALL, Listener, configuration, configurations, recorded, train

import fanin
from fanin import run, spool
from fanin.build import build, initialize, load_model
from fanin.errors import ConfigError
from fanin.initializers import Rehearsal, dbn, gradinit, metainit, rehearsal
from fanin.randomness import Streams
from fanin.report import series
from fanin.report.material import gather
from fanin.run import Trainer
from fanin.shipping import ship
from fanin.spool import Spool
from fanin.tracking import Tracker

# A module for a project folder: initializers as a user would write them.
MODULE = """
import torch
from fanin.errors import ConfigError
from fanin.initializers import Step, checked_by, fill_weights, he_normal

calls = []


def he(weight, *, generator):
    he_normal(weight, generator=generator, gain=2**0.5, mode="fan_in")


def plain(model, *, streams):
    fill_weights(model, weight=he, streams=streams)


def greedy(model, *, streams, images, labels, steps):
    plain(model, streams=streams)
    calls.append((images, labels))
    model.train()
    for number in range(1, steps + 1):
        model(images)  # moves the streams of dropout and the averages of batch norm
        torch.rand(7)
        yield Step(number, {"layers.0/error": 1 / number})


def even(model, *, size, in_shape, scale, count):
    if size % 2:
        raise ConfigError(f"initializer.size: must be even for {count} images {in_shape} of scale {scale}")


@checked_by(even)
def picky(model, *, size: int = 3):
    calls.append(size)
"""
GREEDY = (*SMALL, "initializer._target_=mine.greedy", "~initializer.gain", "~initializer.mode", "+initializer.steps=4")


@pytest.fixture
def mine(project, monkeypatch):
    (project / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    import mine

    return mine


def pretraining(folder) -> list[tuple[int, dict]]:
    records, _ = spool.read(folder / "spool.jsonl")
    return [(record["step"], record["metrics"]) for record in records if record["kind"] == "pretrain"]


CURVE = [(n, {"pretrain/layers.0/error": 1 / n}) for n in (1, 2, 3, 4)]


def test_it_sees_the_training_images_of_its_own_run_and_no_others(project, mine):
    config = configuration(*GREEDY)
    trainer = Trainer(threads=1)
    train(config, project / "run", trainer=trainer)
    [(images, labels)] = mine.calls
    split = trainer._split(config)
    assert torch.equal(images, split.images[split.train]) and torch.equal(labels, split.labels[split.train])
    assert len(labels) == 200


def test_what_it_measures_becomes_records_before_the_first_epoch(project, mine):
    train(configuration(*GREEDY), project / "run")
    assert pretraining(project / "run") == CURVE
    kinds = [record["kind"] for record in spool.read(project / "run" / "spool.jsonl")[0]]
    assert kinds == ["start", *["pretrain"] * 4, *["epoch"] * 3, "end"]


def test_it_disturbs_no_stream_of_training(project, mine):
    """With the weights of he_normal, a run that pretrained trains bit for bit as one that did not."""
    how = ("regularization=[dropout,batchnorm]",)
    plain = train(configuration(*SMALL, *how), project / "plain")
    whole = train(configuration(*GREEDY, *how), project / "whole")
    assert [r["metrics"]["train/loss"] for r in plain.epochs] == [r["metrics"]["train/loss"] for r in whole.epochs]
    assert [r["metrics"]["val/loss"] for r in plain.epochs] == [r["metrics"]["val/loss"] for r in whole.epochs]


def test_its_seconds_count_from_epoch_0_on(project, mine, monkeypatch):
    took = iter([0.0, 100.0])
    real = run.time.perf_counter
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(took, None) or real() * 1e-9)
    digest = train(configuration(*GREEDY), project / "run")
    assert [round(record["metrics"]["seconds"]) for record in digest.epochs] == [100, 100, 100]


def test_a_run_stopped_in_it_starts_anew_and_records_each_point_once(project, mine):
    class Impatient(Listener):
        polled = 0

        @property
        def stopped(self):
            self.polled += 1
            return "interrupted" if self.polled == 2 else None

    config = configuration(*GREEDY)
    digest = train(config, project / "run", listener=Impatient())
    assert (digest.end["status"], digest.end["reason"], digest.epochs) == ("KILLED", "interrupted", ())
    assert pretraining(project / "run") == CURVE[:2]
    whole, resumed = train(config, project / "whole"), train(config, project / "run")
    assert pretraining(project / "run") == CURVE and resumed.attempts == 2
    assert resumed.end["metrics"] == whole.end["metrics"]


def test_a_run_that_goes_on_from_a_checkpoint_is_not_initialized_again(project, mine):
    config = configuration(*GREEDY, "epochs=4")
    whole = train(config, project / "whole")
    train(config, project / "run", listener=Listener(stop_at=1))
    assert len(mine.calls) == 2
    resumed = train(config, project / "run")
    assert len(mine.calls) == 2 and pretraining(project / "run") == CURVE
    assert [r["metrics"]["val/loss"] for r in resumed.epochs] == [r["metrics"]["val/loss"] for r in whole.epochs]
    load_model(project / "run" / "artifacts")
    assert len(mine.calls) == 2


def test_its_check_is_asked_before_any_run_and_by_name(project, mine):
    picky = (*SMALL, "initializer._target_=mine.picky", "~initializer.gain", "~initializer.mode")
    lists = [[*picky], [*picky, "+initializer.size=4"], [*picky, "+initializer.sise=4"], [*GREEDY[:-1]]]
    complaints = [Trainer(threads=1).complaint(config) for config in configurations(lists)]
    assert complaints[0] == "initializer.size: must be even for 200 images (1, 8, 8) of scale unit"
    assert complaints[1] is None
    assert "initializer: 'sise' is not one of: size; did you mean 'size'" in complaints[2]
    assert complaints[3].startswith("initializer.steps: missing, and mine.greedy has no default")
    assert not mine.calls


def test_the_cost_of_an_epoch_is_measured_without_it(project, mine):
    Trainer(threads=1)("estimate", configuration(*GREEDY), Listener())
    assert not mine.calls


def seconds_of_pretraining(*overrides):
    return Trainer(threads=1)("pretraining", configuration(*SMALL, *overrides), Listener())


def test_the_time_of_pretraining_is_measured_on_a_short_version_of_it(project, mine):
    brief = rehearsal(dbn, {"epochs": 20, "batch_size": 10}, count=1000)
    assert brief == Rehearsal({"epochs": 1}, images=100, times=200)
    assert rehearsal(metainit, {"steps": 500, "batch_size": 128}, count=100).times == 125
    assert rehearsal(gradinit, {"steps": 2, "batch_size": 128}, count=5000) == Rehearsal({"steps": 2}, 256, 1)
    for name in ("dbn", "metainit", "gradinit"):
        assert seconds_of_pretraining(f"initializer={name}") > 0
    assert seconds_of_pretraining("initializer=lsuv") == seconds_of_pretraining() == 0
    assert Trainer(threads=1)("pretraining", configuration(*GREEDY), Listener()) == 0  # it says nothing of a short one
    assert not mine.calls


@pytest.mark.slow
def test_the_time_of_pretraining_is_foretold_within_a_factor_of_two(project):
    settings = ("data.n_train=2000", "model.activation=sigmoid", "initializer=dbn", "epochs=0", "tracking=none")
    config = configuration(*settings)
    foretold = min(Trainer(threads=1)("pretraining", config, Listener()) for _ in range(3))
    train(config, project / "run")
    assert 0.5 < recorded(project / "run").end["seconds"] / foretold < 2


def test_what_it_raises_is_told_with_its_line(project, mine):
    config = configuration(*GREEDY[:-1], "+initializer.steps=many")
    with pytest.raises(ConfigError, match=r"mine.greedy raised TypeError.*\(mine.py, line \d+\)"):
        train(config, project / "run")
    assert recorded(project / "run").end["status"] == "FAILED"


def test_an_option_may_be_an_initializer_of_one_weight(project):
    lsuv = [*SMALL, "initializer=lsuv"]
    lists = [
        lsuv,
        [*lsuv, "initializer.weight._target_=fanin.initializers.lecun_normal", "~initializer.weight.gain"],
        [*lsuv, "initializer.weight.gain=-1"],
        [*lsuv, "+initializer.weight.gian=1"],
        [*lsuv, "~initializer.weight", "+initializer.weight=orthogonal"],
    ]
    complaints = [Trainer(threads=1).complaint(config) for config in configurations(lists)]
    assert complaints[:2] == [None, None]
    assert complaints[2] == "initializer.gain: must be above 0, got -1"
    assert complaints[3].startswith("initializer.weight: 'gian' is not one of: gain")
    assert complaints[4].startswith("initializer.weight: must be an initializer of one weight")


def test_its_curves_are_in_mlflow_once_however_often_the_run_was_killed(tmp_path):
    tracker = Tracker(project=tmp_path, uri=f"sqlite:///{new_database(tmp_path / 'mlflow.db')}")
    folder = make_run(make_study(tmp_path, metric="val/accuracy", direction="maximize"))
    for attempt in (1, 2, 3):  # each comes one step further, and is shipped with what an older one had shipped
        with Spool(folder.spool) as log:
            log.append("start")
            for number, (step, metrics) in enumerate(CURVE[: attempt + 1]):
                log.append("pretrain", number=number, step=step, metrics=metrics)
        ship(folder, tracker=tracker)
        folder.forget()
    ship(folder, tracker=tracker)
    points = stored(tmp_path / "mlflow.db")
    assert [(key, step, value) for key, step, value, *_ in points] == [
        (key, step, value) for step, metrics in CURVE for key, value in metrics.items()
    ]
    curves = fanin.curves("initializers", "pretrain/*", project=tmp_path)
    assert list(curves["step"]) == [1, 2, 3, 4] and list(curves["value"]) == [1, 1 / 2, 1 / 3, 1 / 4]

    ship(recorded_train(folder, last=2), tracker=tracker)
    drawn = series.curves(gather("initializers", project=tmp_path))
    assert drawn["steps"] == [0, 1, 2, 3, 4] and drawn["epochs"] == 3  # the axis of val/accuracy ends with training
    assert drawn["values"]["pretrain/layers.0/error"] == [[None, 1, 0.5, 0.33333, 0.25]]
    assert "pretrain/layers.0/error" not in drawn["guess"] and drawn["first"] == "val/accuracy"


def test_the_streams_that_are_handed_in_are_those_of_init(project, mine, monkeypatch):
    asked = []
    generator = Streams.generator
    monkeypatch.setattr(
        Streams, "generator", lambda self, purpose, *more: asked.append(purpose) or generator(self, purpose, *more)
    )
    config = configuration(*GREEDY)
    trainer = Trainer(threads=1)
    split = trainer._split(config)
    parts = build(config, shape=(1, 8, 8), device="cpu", train_size=200)
    asked.clear()
    list(initialize(config, parts.model, split))
    assert set(asked) <= {"init", "dropout"}
