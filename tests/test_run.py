"""A run from its configuration to its record and its files."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image
from trained import SMALL, Listener, configuration, recorded, train

from fanin import data, training
from fanin.build import load_model, resolve_device
from fanin.errors import ConfigError
from fanin.evaluation import evaluate
from fanin.randomness import Streams
from fanin.run import Trainer

SIZE = 300  # test images of digits, 30 a class
ARCHITECTURES = {
    "softmax": ["model=softmax"],
    "mlp with dropout and batch norm": ["model=mlp", "regularization=[dropout,batchnorm]"],
    "cnn": ["model=cnn"],
    "averaged weights": ["model=mlp_narrow", "regularization=[weight_averaging,batchnorm]"],
    "resnet18": ["model=resnet18", "data.n_train=100", "epochs=1"],
}


def split_of(config: dict) -> data.Split:
    prepared = data.prepare(data.load(data.digits, shape=[1, 8, 8], classes=10), scale="unit", device="cpu")
    streams = Streams(config["seed"], config["replicate"])
    return data.split(prepared, val=config["data"]["val"], n_train=config["data"]["n_train"], streams=streams)


def values(digest, key: str) -> list[float]:
    return [record["metrics"][key] for record in digest.epochs]


@pytest.mark.parametrize("overrides", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("weights", ["last", "best"])
def test_a_loaded_model_has_the_recorded_test_accuracy_to_the_last_digit(project, overrides, weights):
    config = configuration(*SMALL, *overrides, f"test_weights={weights}")
    digest = train(config, project / "run")
    model = load_model(project / "run" / "artifacts", weights)
    split = split_of(config)
    found = evaluate(model, split.test_images, split.test_labels)
    assert digest.end["metrics"] == {"test/loss": found.loss, "test/accuracy": found.accuracy}
    assert not model.training


def test_the_best_weights_are_those_of_the_lowest_validation_loss(project):
    config = configuration(*SMALL, "epochs=12", "optimizer=sgd", "optimizer.lr=3")  # a bumpy road
    digest = train(config, project / "run")
    losses = values(digest, "val/loss")
    assert min(losses) < losses[-1]
    split = split_of(config)
    images, labels = split.images[split.val], split.labels[split.val]
    artifacts = project / "run" / "artifacts"
    assert evaluate(load_model(artifacts, "best"), images, labels).loss == pytest.approx(min(losses), rel=1e-6)
    assert evaluate(load_model(artifacts, "last"), images, labels).loss == pytest.approx(losses[-1], rel=1e-6)


def test_the_files_of_a_run_are_whole_and_say_where_it_came_from(project):
    config = configuration(*SMALL, "initializer=orthogonal")
    digest = train(config, project / "run")
    artifacts = project / "run" / "artifacts"
    assert yaml.safe_load((artifacts / "config.yaml").read_text()) == config
    environment = json.loads((artifacts / "environment.json").read_text())
    assert environment["torch"] == version("torch") and environment["threads"] == "1"
    assert {"python", "platform", "fanin", "numpy"} <= set(environment)
    for name in ("best.pt", "last.pt"):
        state = torch.load(artifacts / name, weights_only=True)
        assert {tuple(value.shape) for value in state.values()} == {(32, 64), (32,), (32, 32), (10, 32), (10,)}
    for name in ("confusion_matrix.png", "test_images.png"):
        with Image.open(artifacts / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert not list((project / "run").glob("*.partial")) and digest.end["status"] == "FINISHED"


def test_the_confusion_matrix_is_of_the_whole_test_set(project):
    digest = train(configuration(*SMALL, "epochs=20", "stats=off"), project / "run")
    table = pandas.read_csv(project / "run" / "artifacts" / "confusion_matrix.csv", index_col="true")
    assert list(table.index) == list(range(10)) and list(table.columns) == [str(label) for label in range(10)]
    matrix = table.to_numpy()
    assert matrix.sum() == SIZE and (matrix.sum(axis=1) == SIZE / 10).all()
    assert np.trace(matrix) / SIZE == pytest.approx(digest.end["metrics"]["test/accuracy"], abs=1e-7)
    assert 0.3 < np.trace(matrix) / SIZE < 1


def test_every_epoch_is_recorded_from_the_untrained_network_on(project):
    listener = Listener()
    digest = train(configuration(*SMALL, "epochs=3"), project / "run", listener=listener)
    assert [record["epoch"] for record in digest.epochs] == [0, 1, 2, 3]
    assert [heard["metrics"] for heard in listener.heard] == [
        {"val/loss": record["metrics"]["val/loss"]} for record in digest.epochs
    ]
    keys = set(digest.epochs[1]["metrics"])
    assert {"train/loss", "train/accuracy", "val/accuracy", "diverged", "seconds", "optimizer/lr"} <= keys
    assert {"weight/layers.2/std", "activation/layers.0/dead", "update/layers.1/ratio"} <= keys
    assert not any(key.startswith("test/") for key in keys)


def test_the_test_set_is_looked_at_once(project, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "evaluate", lambda *given, **how: seen.append(given) or evaluate(*given, **how))
    train(configuration(*SMALL, "epochs=3"), project / "run")
    assert len(seen) == 1 and len(seen[0][1]) == SIZE


def test_a_run_is_a_function_of_its_configuration_and_replicate(project):
    config = configuration(*SMALL)
    trainer = Trainer(threads=1)
    first, again = (train(config, project / name, trainer=trainer) for name in ("first", "again"))
    other = train(config | {"replicate": 1}, project / "other", trainer=trainer)
    fresh = train(config, project / "fresh")
    assert values(first, "train/loss") == values(again, "train/loss") == values(fresh, "train/loss")
    assert set(values(first, "train/loss")).isdisjoint(values(other, "train/loss"))
    states = [torch.load(project / name / "artifacts" / "last.pt") for name in ("first", "again", "fresh")]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)


def test_an_initializer_changes_no_other_random_stream(project, monkeypatch):
    """Variants of one replicate see the same split, batches and dropout masks: their comparison is paired."""
    drawn, generator = {}, Streams.generator

    def spy(streams, purpose, *names, **how):
        made = generator(streams, purpose, *names, **how)
        drawn[name].append((purpose, *names, made.initial_seed()))
        return made

    monkeypatch.setattr(Streams, "generator", spy)
    for name in ("he_normal", "zeros"):
        drawn[name] = []
        overrides = ["model=mlp", "regularization=dropout", f"initializer={name}"]
        train(configuration(*SMALL, *overrides), project / name)
    others = {name: [draw for draw in draws if draw[0] != "init"] for name, draws in drawn.items()}
    assert others["he_normal"] == others["zeros"]
    assert {"split", "order", "dropout"} <= {draw[0] for draw in others["zeros"]}


def test_data_are_read_once_for_many_runs_and_again_when_they_change(project, monkeypatch):
    reads, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *given, **how: reads.append(how["scale"]) or load(*given, **how))
    trainer = Trainer(threads=1)
    for number, change in enumerate([[], ["optimizer.lr=0.1"], ["data.n_train=100"], ["data.scale=standard"], []]):
        train(configuration(*SMALL, "epochs=1", *change), project / str(number), trainer=trainer)
    assert reads == ["unit", "standard", "unit"]


@pytest.mark.parametrize("model", ["mlp_narrow", "cnn"])
def test_bf16_trains_about_as_well_as_fp32(project, model):
    config = configuration(*SMALL, f"model={model}", "epochs=4")
    full = train(config, project / "fp32")
    hardware = config["hardware"] | {"precision": "bf16"}
    half = train(config | {"hardware": hardware}, project / "bf16")
    losses = values(half, "train/loss")
    assert losses != values(full, "train/loss")
    assert losses[-1] == pytest.approx(values(full, "train/loss")[-1], rel=0.05) and losses[-1] < losses[0]
    state = torch.load(project / "bf16" / "artifacts" / "last.pt", weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, to itself
@pytest.mark.parametrize("overrides", [["model=mlp", "regularization=dropout"], ["model=cnn"]])
def test_a_compiled_model_trains_as_an_eager_one_and_is_saved_like_it(project, overrides):
    config = configuration(*SMALL, *overrides)
    eager = train(config, project / "eager")
    compiled = train(config | {"hardware": config["hardware"] | {"compile": "default"}}, project / "compiled")
    assert values(compiled, "val/loss") == pytest.approx(values(eager, "val/loss"), rel=1e-3)
    split = split_of(config)
    found = evaluate(load_model(project / "compiled" / "artifacts", "last"), split.test_images, split.test_labels)
    assert found.accuracy == pytest.approx(compiled.end["metrics"]["test/accuracy"], abs=0.01)


def test_divergence_is_a_result(project):
    config = configuration(*SMALL, "model=mlp_deep", "optimizer=sgd", "optimizer.lr=1e6", "epochs=5")
    digest = train(config, project / "run")
    assert (digest.end["status"], digest.end["reason"]) == ("FINISHED", "diverged")
    assert values(digest, "diverged")[-1] == 1
    assert not all(math.isfinite(values(digest, f"{part}/loss")[-1]) for part in ("train", "val"))
    assert len(digest.epochs) < 6 and "test/accuracy" in digest.end["metrics"]


def test_the_probe_grows_with_the_data_set_and_not_with_what_a_run_takes_of_it(project, monkeypatch):
    sizes = [(1797, 64), (4000, 64), (8000, 125), (16_384, 256), (60_000, 256)]
    assert [training.probe_size(images, level="standard") for images, _ in sizes] == [size for _, size in sizes]
    assert training.probe_size(1797, level="full") == 256
    seen = []
    monkeypatch.setattr(training, "LayerStats", lambda *_, images, **__: seen.append(len(images)))
    for taken in (200, 1000):
        train(configuration(*SMALL, f"data.n_train={taken}"), project / f"run{taken}")
    assert seen == [64, 64]


def test_early_stopping_ends_a_run_and_says_so(project):
    config = configuration(*SMALL, "regularization=early_stopping", "initializer=zeros", "epochs=60", "optimizer=sgd")
    digest = train(config | {"optimizer": config["optimizer"] | {"lr": 1e-12}}, project / "run")
    assert digest.end["reason"] == "early_stopping" and digest.last_epoch < 60


def test_a_verdict_prunes_a_run_which_keeps_its_weights_and_never_sees_the_test_set(project):
    listener = Listener(verdict="median: too bad")
    digest = train(configuration(*SMALL), project / "run", listener=listener, judged=True)
    assert (digest.end["status"], digest.end["reason"]) == ("KILLED", "pruned: median: too bad")
    assert digest.end["metrics"] == {} and digest.last_epoch == 0
    files = {path.name for path in (project / "run" / "artifacts").iterdir()}
    assert {"last.pt", "config.yaml"} <= files and "confusion_matrix.csv" not in files


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam", "regularization=dropout"],
        ["optimizer=sgd"],
        ["regularization=[shift,rotate,mixup,input_noise,input_dropout,noisy_batchnorm,weight_averaging]"],
        ["model=resmlp", "model.depth=2", "regularization=[stochastic_depth,weight_decay]"],
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end_as_an_uninterrupted_one(project, overrides):
    config = configuration(*SMALL, *overrides, "epochs=5", "scheduler=cosine")
    whole = train(config, project / "whole")
    stopped = train(config, project / "parts", listener=Listener(stop_at=2))
    assert (stopped.end["status"], stopped.end["reason"], stopped.last_epoch) == ("KILLED", "interrupted", 2)
    assert (project / "parts" / "checkpoint.pt").exists()
    resumed = train(config, project / "parts")
    assert [record["epoch"] for record in resumed.epochs] == [0, 1, 2, 3, 4, 5] and resumed.attempts == 2
    for key in ("train/loss", "val/accuracy", "update/layers.0/ratio", "optimizer/lr"):
        assert [r["metrics"].get(key) for r in resumed.epochs] == [r["metrics"].get(key) for r in whole.epochs]
    assert resumed.end["metrics"] == whole.end["metrics"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("it broke"), "FAILED", "RuntimeError: it broke"),
        (ConfigError("model.width: must be even"), "FAILED", "model.width: must be even"),
        (KeyError(), "FAILED", "KeyError"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
    ],
)
def test_whatever_ends_a_run_is_recorded_and_passed_on(project, monkeypatch, error, status, reason):
    def broken(*given, **how):
        raise error

    monkeypatch.setattr(training, "fit", broken)
    with pytest.raises(type(error)):
        train(configuration(*SMALL), project / "run")
    end = recorded(project / "run").end
    assert (end["status"], end["reason"]) == (status, reason)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name, message in {"cuda": "has no cuda", "mps": "has no mps", "tpu": "'tpu' is not one of"}.items():
        with pytest.raises(ConfigError, match=f"hardware.device: .*{message}"):
            resolve_device(name)


@pytest.mark.slow
def test_the_cost_of_an_epoch_is_measured_on_a_part_of_it(project):
    trainer = Trainer(threads=1)
    little, more = (
        configuration(*SMALL, "data=mnist_5k", "data.val=500", f"data.n_train={count}") for count in (1500, 3000)
    )
    for config in (little, more):
        trainer("estimate", config, Listener())  # warm up
    ratio = trainer("estimate", more, Listener()) / trainer("estimate", little, Listener())
    assert 1 < ratio < 4  # the same batches are measured, for twice as many in an epoch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_gpu_trains_as_well_as_the_cpu_and_its_weights_load_anywhere(project, model, precision):
    overrides = [*SMALL, f"model={model}", "epochs=5", "regularization=dropout"]
    cpu = train(configuration(*overrides, "hardware=cpu"), project / "cpu")
    config = configuration(*overrides, "hardware=cuda", f"hardware.precision={precision}")
    gpu = train(config, project / "gpu")
    assert values(gpu, "val/loss")[0] == pytest.approx(values(cpu, "val/loss")[0], rel=1e-2)  # the same weights
    assert values(gpu, "val/loss")[-1] == pytest.approx(values(cpu, "val/loss")[-1], rel=0.3)
    split = split_of(config)
    found = evaluate(load_model(Path("gpu/artifacts"), "last"), split.test_images, split.test_labels)
    assert found.accuracy == pytest.approx(gpu.end["metrics"]["test/accuracy"], abs=0.02)
