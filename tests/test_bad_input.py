"""Every kind of bad input, refused before the first run with its key, the rule and a way out."""

import os
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT
from refusals import TINY, WITHOUT, refused

from fanin.app import main

UNKNOWN = {
    "command": (["swep"], ["command", "'swep'", "did you mean 'sweep'?"]),
    "no study": (["sweep"], ["which study? sweeps/ has 01_seed_replay, ", "initializers"]),
    "no study to show": (["results"], ["which study? sweeps/ has 01_seed_replay, "]),
    "flag": (["train", "--dryrun"], ["--dryrun", "fanin train --help"]),
    "study": (["sweep", "initialisers"], ["study", "did you mean 'initializers'?", "learning_rate"]),
    "group": (["train", "optimzer=sgd"], ["optimzer: no such key", "did you mean optimizer?"]),
    "option": (["train", "optimizer=sdg"], ["optimizer: 'sdg'", "did you mean 'sgd'?"]),
    "option in capitals": (["train", "optimizer=SGD"], ["optimizer: 'SGD'", "did you mean 'sgd'?"]),
    "option that is a number": (["train", "model=3"], ["model: '3' is not one of", "mlp"]),
    "option of null": (["train", "model=null"], ["model: 'null' is not one of", "mlp"]),
    "option in a list": (
        ["train", "regularization=[dropout,batchnrm]"],
        ["regularization: 'batchnrm'", "did you mean 'batchnorm'?"],
    ),
    "option among swept ones": (
        ["train", "-m", "initializer=zeros,he_norml"],
        ["initializer: 'he_norml'", "did you mean 'he_normal'?"],
    ),
    "root key": (["train", "epoch=3"], ["epoch: no such key", "did you mean epochs?"]),
    "key in a group": (["train", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean optimizer.lr?"]),
    "key of a group without it": (["train", "lr=0.1"], ["lr: no such key", "did you mean optimizer.lr?"]),
    "swept key": (["train", "-m", "lr=0.1,1"], ["lr: no such key", "did you mean optimizer.lr?"]),
    "key of a null": (
        ["train", "-m", "study.racing.min_replicates=3"],
        ["study.racing.min_replicates: study.racing is null", "study.racing={min_replicates: ...}"],
    ),
    "key of a number": (["train", "epochs.most=3"], ["epochs.most: no such key: epochs is a value, 10"]),
    "key of an empty mapping": (
        ["train", "-m", "study.when={optimizer.lr: {optimizer: [sgd]}}"],
        ["study.when: keys are added to study.when with a plus: +study.when={...}"],
    ),
    "hydra key": (["train", "hydra.foo=3"], ["hydra.foo: no such key"]),
    "sweeper key": (
        ["train", "-m", "initializer=zeros,ones", "hydra.sweeper.timeot=3"],
        ["hydra.sweeper.timeot", "did you mean hydra.sweeper.timeout?"],
    ),
    "sweeper": (["train", "-m", "hydra/sweeper=tpee"], ["hydra/sweeper: 'tpee'", "did you mean 'tpe'?"]),
    "sampler option": (
        ["train", "-m", "hydra/sweeper=tpe", "optimizer.lr=interval(0,1)", "hydra.sweeper.sampler.n_start=3"],
        ["hydra.sweeper.sampler.n_start", "n_startup_trials"],
    ),
    "pruner": (
        ["train", "-m", "hydra/sweeper/pruner=medain"],
        ["pruner: 'medain'", "did you mean 'median'?"],
    ),
    "added hardware key": (["train", "+hardware.cores=3"], ["hardware.cores: no such key", "workers"]),
    "metric": (["train", "study.metric=val/acuracy"], ["study.metric", "did you mean 'val/accuracy'?"]),
    "layer of a metric": (
        ["train", "study.metric=weight/layers.7/std", "study.direction=minimize"],
        ["study.metric: 'weight/layers.7/std'", "layers.2/std"],
    ),
    "direction": (["train", "study.direction=max"], ["study.direction", "did you mean 'maximize'?"]),
    "activation": (["train", "model.activation=rellu"], ["model.activation", "did you mean 'relu'?"]),
    "argument of a model": (["train", "+model.widhts=3"], ["model: 'widhts'", "did you mean 'widths'?"]),
    "classifier": (["train", "model=resnet18", "model.name=resnet19"], ["model.name", "resnet18"]),
    "precision": (["train", "hardware.precision=fp8"], ["hardware.precision", "did you mean 'fp32'?"]),
    "device": (["train", "hardware.device=gpu"], ["hardware.device: 'gpu'", "cuda"]),
    "compile mode": (["train", "hardware.compile=true"], ["hardware.compile", "default"]),
    "statistics": (["train", "stats=all"], ["stats: 'all'", "standard"]),
    "bias": (["train", "initializer.bias=zero"], ["initializer.bias: 'zero'", "did you mean 'zeros'?"]),
}

MALFORMED = {
    "no equals sign": (["train", "epochs"], ["epochs: an override is key=value"]),
    "no key": (["train", "=3"], ["=3: an override is key=value"]),
    "open bracket": (["train", "model.widths=[1"], ["model.widths: '[1' is not in Hydra's override grammar"]),
    "open brace": (["train", "study={a:"], ["study: '{a:'", "grammar"]),
    "no value": (["train", "epochs="], ["epochs: must be a number, got ''"]),
    "several values": (["train", "initializer=zeros,ones"], ["zeros,ones", "fanin train -m"]),
    "several choices": (["train", "model=[mlp,cnn]"], ["model: takes one choice", "-m model=mlp,cnn"]),
    "removed group": (["train", "~optimizer"], ["optimizer: is needed"]),
    "removed key": (["train", "~optimizer.batch"], ["optimizer.batch: is needed"]),
    "group as a value": (["train", "study=3"], ["study: is set by its keys", "study.metric"]),
    "interpolation": (["train", "optimizer.lr=${lr}"], ["optimizer.lr", "'lr' not found"]),
    "unset variable": (["train", "tracking=server"], ["tracking.uri", "MLFLOW_TRACKING_URI must be set"]),
    "flag of sweeps": (["train", "--new"], ["--new", "sweeps"]),
    "name of a single run": (["train", "study.name=mine"], ["study.name: names a sweep"]),
    "two names": (["sweep", "initializers", "study.name=a/b"], ["study.name: names a folder: printable", "got 'a/b'"]),
}

TYPES = {
    "word for a number": (["train", "optimizer.lr=abc"], ["optimizer.lr: must be a number, got 'abc'"]),
    "fraction for a count": (["train", "epochs=1.5"], ["epochs: must be a whole number >= 0, got 1.5"]),
    "truth for a number": (["train", "epochs=true"], ["epochs: must be a number, got True"]),
    "list for a number": (["train", "seed=[1]"], ["seed: must be a number, got [1]"]),
    "null for a number": (
        ["train", "batch_size=null"],
        ["batch_size: must be a whole number >= 1, got None"],
    ),
    "number for a list": (["train", "model.widths=256"], ["model.widths: must be a list", "[256,256]"]),
    "words in a list": (["train", "model.widths=[a]"], ["model.widths: must be a list of positive"]),
    "word for a switch": (["train", "data=mnist", "data.download=maybe"], ["data.download: must be true or"]),
    "word for a budget": (
        ["train", "-m", "hydra/sweeper=tpe", "hydra.sweeper.max_trials=few"],
        ["hydra.sweeper.max_trials", "Integer"],
    ),
    "number for zip": (["train", "-m", "study.zip=3"], ["study.zip: must look like [[initializer"]),
    "word in racing": (
        ["train", "-m", "seed=1,2", "study.racing={min_replicates: many}", "study.replicates=5"],
        ["study.racing.min_replicates: must be a whole number >= 2, for a paired interval, got 'many'"],
    ),
    "truth in racing": (
        ["train", "-m", "seed=1,2", "study.racing={confidence: true}", "study.replicates=5"],
        ["study.racing.confidence: must be a number from 0.5 to below 1, got True"],
    ),
    "truth for workers": (["train", "hardware.workers=true"], ["hardware.workers: must be a whole number"]),
    "number for racing": (["train", "-m", "study.racing=3"], ["study.racing: must look like {min_repl"]),
}

RANGES = {
    "negative epochs": (["train", "epochs=-1"], ["epochs: must be a whole number >= 0, got -1"]),
    "no batch": (["train", "batch_size=0"], ["batch_size: must be a whole number >= 1, got 0"]),
    "negative seed": (["train", "seed=-1"], ["seed: must be a whole number >= 0, got -1"]),
    "negative learning rate": (["train", "optimizer.lr=-1"], ["optimizer.lr: must be a finite number > 0"]),
    "one of several": (
        ["train", "-m", "optimizer.lr=0.1,-1"],
        ["optimizer.lr: must be", "in optimizer.lr=-1"],
    ),
    "dropout": (["train", "regularization.dropout=1.5"], ["regularization.dropout", ">= 0 and < 1", "1.5"]),
    "patience": (["train", "regularization.patience=0"], ["regularization.patience", ">= 1, or null"]),
    "std": (["train", "initializer=normal", "initializer.std=-1"], ["initializer.std: must be above 0"]),
    "step size": (["train", "scheduler=step", "scheduler.step_size=0"], ["scheduler.step_size", ">= 1"]),
    "replicates": (["train", "-m", "study.replicates=0"], ["study.replicates: must be a whole number >= 1"]),
    "trials": (
        ["train", "-m", "hydra/sweeper=random", "seed=1,2", "hydra.sweeper.max_trials=0"],
        ["hydra.sweeper.max_trials: must be null or > 0, got 0"],
    ),
    "threads": (["train", "hardware.threads=0"], ["hardware.threads: must be a whole number >= 1, got 0"]),
    "workers": (["train", "hardware.workers=few"], ["hardware.workers", "or auto, got 'few'"]),
    "no validation": (["train", "data.val=0"], ["data.val: must be a positive whole number"]),
    "too much validation": (["train", "data.val=4000"], ["data.val", "4000 training images"]),
    "too many images": (["train", "data.n_train=9999"], ["data.n_train: must be at most 3500"]),
    "empty interval": (
        ["train", "-m", "hydra/sweeper=tpe", "optimizer.lr=interval(1,1)"],
        ["optimizer.lr: an interval's lower end must be below"],
    ),
    "empty range": (["train", "-m", "optimizer.lr=range(1,0)"], ["optimizer.lr: a range must not be empty"]),
    "range without end": (["train", "-m", "seed=range(1000000000)"], ["seed: has 1,000,000,000 values"]),
    "huge grid": (
        ["train", "-m", "seed=range(40000)", "batch_size=range(1,25001)"],
        ["1,000,000,000", "grid"],
    ),
}

CONTRADICTIONS = {
    "two norms": (["train", "regularization=[batchnorm,layernorm]"], ["batchnorm and layernorm both set"]),
    "dropout in softmax": (
        ["train", "model=softmax", "regularization=dropout"],
        ["regularization.dropout", "Softmax has no place for dropout"],
    ),
    "norm in softmax": (["train", "model=softmax", "regularization=layernorm"], ["regularization.norm"]),
    "small batches in rprop": (["train", "optimizer=rprop", "optimizer.batch=mini"], ["set it to full"]),
    "weight decay in lbfgs": (
        ["train", "optimizer=lbfgs", "regularization=weight_decay"],
        ["regularization.weight_decay: must be 0, for lbfgs", "regularization=l2"],
    ),
    "an optimizer's own weight decay": (
        ["train", "+optimizer.weight_decay=0.1"],
        ["optimizer.weight_decay: is set for every optimizer by regularization.weight_decay", "regularization.l2"],
    ),
    "two decays": (["train", "regularization=[l2,weight_decay]"], ["l2 and weight_decay are two forms of one thing"]),
    "shifted out of sight": (
        ["train", "data=digits", "regularization=shift", "regularization.shift=8"],
        ["regularization.shift: must leave something of images of 8x8, got 8"],
    ),
    "groups that do not divide the units": (
        ["train", "regularization=groupnorm", "regularization.groups=3"],
        ["regularization.groups: must divide the 256 units", "got 3"],
    ),
    "groups without their norm": (
        ["train", "regularization.groups=4"],
        ["regularization.groups: has no effect with norm=none, got 4", "add regularization=groupnorm"],
    ),
    "noise of another norm": (
        ["train", "regularization=batchnorm", "regularization.norm_noise=0.5"],
        ["regularization.norm_noise: has no effect with norm=batch, got 0.5", "add regularization=noisy_batchnorm"],
    ),
    "groups swept under all norms": (
        ["train", "-m", "regularization=none,groupnorm", "regularization.groups=2,4"],
        ["regularization.groups: has no effect", "study.when={regularization.groups: {regularization: [groupnorm]}}"],
    ),
    "stochastic depth without branches": (
        ["train", "regularization=stochastic_depth"],
        ["regularization.stochastic_depth", "Mlp has no place", "resmlp"],
    ),
    "fixup without branches": (
        ["train", "initializer=fixup"],
        ["initializer: fixup needs residual branches", "model=resmlp", "model.branch=fixup"],
    ),
    "rezero on plain branches": (
        ["train", "model=rescnn", "initializer=rezero"],
        ["initializer: rezero sets learned numbers", "take model.branch=gated"],
    ),
    "a scale that is not used": (["train", "model=resmlp", "model.scale=0.5"], ["model.scale", "model.branch=scaled"]),
    "sparse adam": (["train", "optimizer=sparse_adam"], ["sparse gradients", "take adam"]),
    "tf32 on a cpu": (["train", "hardware=cpu", "hardware.precision=tf32"], ["tf32 exists on cuda only"]),
    "mps elsewhere": (["train", "hardware=mps"], ["hardware.device: this machine has no mps"]),
    "model too large for the images": (
        ["train", "model=cnn_small", "data=digits"],
        ["model", "8x8"],
    ),
    "shape of other data": (["train", "data.shape=[1,32,32]"], ["data.shape: must be [1, 28, 28]"]),
    "classes of other data": (["train", "data.classes=11"], ["data.classes: must be 10"]),
    "loss upwards": (
        ["train", "study.metric=val/loss", "study.direction=maximize"],
        ["study.direction: val/loss is better the other way (minimize"],
    ),
    "statistic without direction": (
        ["train", "study.metric=grad/layers.0/norm"],
        ["study.direction: must be maximize or minimize"],
    ),
    "statistic that is off": (
        ["train", "study.metric=grad/layers.0/norm", "study.direction=minimize", "stats=off"],
        ["study.metric: is not measured with stats=off"],
    ),
    "interval in a grid": (
        ["train", "-m", "optimizer.lr=interval(0.1,1)"],
        ["optimizer.lr: interval(0.1,1.0) has no list of values", "hydra/sweeper=tpe"],
    ),
    "two metrics in a grid": (
        ["train", "-m", "seed=1,2", "study.metric=[val/accuracy,seconds]"],
        ["study.metric: a grid has one"],
    ),
    "search without a space": (
        ["train", "-m", "hydra/sweeper=tpe"],
        ["hydra.sweeper.params: a search needs"],
    ),
    "names in cmaes": (
        ["train", "-m", "hydra/sweeper=cmaes", "initializer=zeros,ones"],
        ["cmaes searches numbers only", "hydra/sweeper=tpe"],
    ),
    "trials of a grid": (
        ["train", "-m", "seed=1,2", "hydra.sweeper.max_trials=1"],
        ["hydra.sweeper.max_trials: a grid runs all of its points"],
    ),
    "pruner that never sees the metric": (
        ["train", "-m", "seed=1,2", "hydra/sweeper/pruner=median", "study.metric=test/accuracy"],
        ["study.metric", "median judges its epochs", "val/"],
    ),
    "pruner of one epoch": (
        ["train", "-m", "seed=1,2", "hydra/sweeper/pruner=median", "epochs=1"],
        ["hydra.sweeper.pruner", "needs epochs=2 or more", "got '1 epochs'"],
    ),
    "race of too few": (
        ["train", "-m", "seed=1,2", "study.racing={min_replicates: 3}", "study.replicates=2"],
        ["study.racing", "min_replicates (3)"],
    ),
    "replicates as values": (
        ["train", "-m", "replicate=0,1,2"],
        ["replicate: changes no number of a run, and cannot be swept", "study.replicates=3"],
    ),
    "the study's own settings as values": (
        ["train", "-m", "study.replicates=1,2"],
        ["study.replicates: changes no number", "it holds for the whole study"],
    ),
    "stores as values": (["train", "-m", "tracking=none,local"], ["tracking: changes no number"]),
    "machines as values": (
        ["train", "-m", "hydra/sweeper=random", "hardware.threads=1,2"],
        ["hardware.threads: changes no number", "hardware.precision alone"],
    ),
    "places of data as values": (["train", "-m", "data=mnist", "data.root=a,b"], ["data.root: changes no number"]),
    "a name as long as no folder's": (
        ["train", "-m", "seed=1,2", f"study.name={'long' * 51}"],
        ["study.name: names a folder", "200 bytes at most"],
    ),
    "a name that a terminal cannot show": (
        ["train", "-m", "seed=1,2", "study.name='a\tb'"],
        ["study.name: names a folder: printable"],
    ),
    "sweeper field of other programs": (
        ["train", "-m", "seed=1,2", "hydra.sweeper.workers=3"],
        ["hydra.sweeper.workers", "hardware.workers"],
    ),
    "a key of the space as Hydra's own": (
        [
            "sweep",
            "initializers",
            "hydra/sweeper=tpe",
            "hydra.sweeper.params.optimizer.lr=tag(log,interval(1e-4,1e-1))",
        ],
        ["hydra.sweeper.params.optimizer.lr: ", "written by itself: 'optimizer.lr=tag(log,interval(1e-4,1e-1))'"],
    ),
    "a key without dots as Hydra's own": (
        ["train", "-m", "+hydra.sweeper.params.seed=1,2"],
        ["hydra.sweeper.params.seed: ", "written by itself: 'seed=1,2'"],
    ),
    "a quoted one with dots": (
        ["train", "++hydra.sweeper.params.optimizer.lr='0.1,0.2'"],
        ["hydra.sweeper.params.optimizer.lr: ", "written by itself: 'optimizer.lr=0.1,0.2'"],
    ),
    "the same value twice": (["train", "-m", "initializer=zeros,zeros"], ["must differ", "'zeros'"]),
    "choices that match nothing": (
        ["train", "-m", "initializer=glob(q*)"],
        ["at least one choice must match"],
    ),
}

USERS_OWN = {
    "package that is not there": (["model._target_=nowhere.Net"], ["cannot import 'nowhere.Net'", "nowhere"]),
    "name that is not there": (["model._target_=users.Net"], ["cannot import 'users.Net'", "no attribute"]),
    "name that is misspelt": (["model._target_=users.Linaer"], ["no attribute 'Linaer'; did you mean 'Linear'?"]),
    "module that is misspelt": (["model._target_=user.Linear"], ["No module named 'user'; did you mean 'users'?"]),
    "argument that nobody gives": (
        ["model._target_=users.slow_net", *WITHOUT],
        ["model.size: missing", "it is given those of in_shape, classes, norm"],
    ),
    "syntax": (["model._target_=broken.f"], ["cannot import 'broken.f'", "(broken.py, line 1)"]),
    "import": (["model._target_=lacking.f"], ["a_package_that_nobody_has", "(lacking.py, line 1)"]),
    "not callable": (["model._target_=users.torch"], ["model._target_: must name a callable"]),
    "no path": (["model._target_=null"], ["model._target_: must name a callable, got None"]),
    "constructor": (
        ["model._target_=users.Linear", "+model.fault=constructor"],
        ["users.Linear raised RuntimeError: no such constant (users.py, line 17)"],
    ),
    "forward": (
        ["model._target_=users.Linear", "+model.fault=forward"],
        ["users.Linear raised AttributeError", "nonsense", "(users.py, line 25)"],
    ),
    "shape": (["model._target_=users.Linear", "+model.fault=shape"], ["does not fit the data", "1x28x28"]),
    "no module": (["model._target_=users.NoModule"], ["must make a torch.nn.Module, got 'NoModule'"]),
    "option": (["model._target_=users.Linear", "+model.depth=3"], ["'depth' is not one of: fault"]),
    "initializer": (
        ["initializer._target_=users.no_parameters", "~initializer.gain", "~initializer.mode"],
        ["initializer._target_: must take the weight"],
    ),
    "loader": (["data._target_=users.loader"], ["cannot read its data: the disk is gone"]),
    "loader's key": (["data._target_=users.slow_loader"], ["raised KeyError: 'train'", "users.py"]),
    "loader's result": (["data._target_=users.wrong_loader"], ["must return", "got int"]),
    "optimizer": (["optimizer._target_=torch.optim.Adamm"], ["optimizer._target_", "Adamm"]),
}


def cases(table: dict) -> list:
    return [pytest.param(arguments, pieces, id=name) for name, (arguments, pieces) in table.items()]


@pytest.mark.parametrize(("arguments", "pieces"), cases(UNKNOWN | MALFORMED | TYPES | RANGES | CONTRADICTIONS))
def test_bad_input_is_refused_with_its_key_the_rule_and_a_way_out(users_project, capsys, arguments, pieces):
    message = refused(capsys, *arguments)
    assert all(piece in message for piece in pieces), message


@pytest.mark.parametrize(("arguments", "pieces"), cases(USERS_OWN))
def test_faults_in_a_users_own_code_are_told_with_their_line(users_project, capsys, arguments, pieces):
    plain = [*WITHOUT] if arguments[0].startswith("model._target_") else []
    message = refused(capsys, "train", *plain, *arguments)
    assert all(piece in message for piece in pieces), message


def test_groups_are_for_those_of_several_norms_that_have_them(users_project, capsys):
    assert main(["sweep", "batch_norm", "regularization=none,groupnorm", "regularization.groups=4", "--dry-run"]) == 0
    assert "regularization: none,groupnorm" in capsys.readouterr().out


def test_a_configuration_that_ends_its_worker_is_named_beside_those_that_are_just_wrong(
    users_project, capsys, monkeypatch
):
    monkeypatch.setattr("fanin.sweep.checks.CHECK_PATIENCE", 2.0)
    targets = "users.crash,users.leave,users.never_end,fanin.initializers.zeros"
    message = refused(
        capsys,
        *("train", "-m", "initializer=zeros", f"initializer._target_={targets}", "batch_size=0,100"),
        *("model=softmax", "data=digits", "data.n_train=100", "hardware.patience=0"),
    )
    for name, why in {
        "crash": "killed by SIGABRT (crash in native code)",
        "leave": "left with exit code 3",
        "never_end": "not done after 2 s",
    }.items():
        assert f"the worker that built it: {why}\n    in initializer._target_=users.{name} batch_size=100" in message
    assert "batch_size: must be a whole number >= 1, got 0\n    in 4 variants" in message


def test_messages_are_one_line_unless_several_configurations_are_wrong(users_project, capsys):
    assert refused(capsys, "train", "optimizer.lr=-1").count("\n") == 1
    both = refused(capsys, "train", "-m", "optimizer.lr=0.1,-1,-2", "batch_size=100,0")
    assert "batch_size: must be a whole number >= 1, got 0\n    in 3 variants, e.g. optimizer.lr=0.1" in both
    assert "optimizer.lr: must be a finite number > 0, got -2\n    in optimizer.lr=-2 batch_size=100" in both


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("study: [\n", ["mine.yaml, line", "is no valid YAML"]),
        ("\x00\x01", ["YAML"]),
        ("", ["sweeps/mine.yaml: a study file's first line must be `# @package _global_`"]),
        ("epochs: 3\n", ["sweeps/mine.yaml: a study file's first line must be `# @package _global_`"]),
        ("# @package _global_\nepcohs: 3\n", ["epcohs: no such key", "did you mean epochs?"]),
        ("# @package _global_\nstudy: {metrc: val/loss}\n", ["study.metrc: no such key", "study.metric?"]),
        ("# @package _global_\nstudy: {replicate: 3}\n", ["did you mean study.replicates"]),
        ("# @package _global_\nstudy: 3\n", ["study: must be a mapping"]),
        ("# @package _global_\nstudy: {points: {a: 3}}\n", ["sweeps/mine.yaml", "study.points are lists"]),
        ("# @package _global_\nhydra: {sweeper: {prams: {}}}\n", ["sweeps/mine.yaml", "'prams'"]),
        (
            "# @package _global_\nhydra: {sweeper: {params: {initializer: []}}}\n",
            ["initializer", "at least one"],
        ),
        (
            "# @package _global_\nhydra: {sweeper: {params: {initialiser: 'a,b'}}}\n",
            ["initialiser", "initializer?"],
        ),
        ("# @package _global_\ndefaults: [override /model: mpl]\n", ["model: 'mpl'", "did you mean 'mlp'?"]),
        ("# @package _global_\ndefaults: [override /modle: mlp]\n", ["modle: no such key", "model?"]),
        ("# @package _global_\nmodel: {widths: [0]}\n", ["model.widths: must be a list of positive"]),
        ("# @package _global_\noptimizer: {speed: 1}\n", ["optimizer: 'speed'"]),
    ],
)
def test_a_study_file_with_a_mistake_is_refused(users_project, capsys, content, pieces):
    (users_project / "sweeps").unlink()
    (users_project / "sweeps").mkdir()
    (users_project / "sweeps" / "mine.yaml").write_text(content)
    message = refused(capsys, "sweep", "mine")
    assert all(piece in message for piece in pieces), message


def test_missing_and_corrupt_data_are_refused_with_the_file(users_project, capsys):
    nowhere = refused(capsys, "train", "data=mnist", "data.root=nowhere", "data.download=false")
    assert "nowhere/MNIST/raw/train-images-idx3-ubyte is missing" in nowhere and "FANIN_DATA" in nowhere
    raw = users_project / "corrupt" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(100))
    corrupt = refused(capsys, "train", "data=mnist", "data.root=corrupt")
    assert "corrupt/MNIST/raw/train-images-idx3-ubyte is" in corrupt
    (users_project / "own.npz").write_bytes(b"PK\x03\x04 and nothing else")
    assert "own.npz is no intact .npz file" in refused(capsys, "train", "data=own", "data.path=own.npz")
    np.savez(users_project / "half.npz", x_train=np.zeros((9, 4, 4)))
    assert "must hold the arrays" in refused(capsys, "train", "data=own", "data.path=half.npz")


@pytest.mark.parametrize("uri", ["foo://x", "mlruns", "http:/x", "http://", "sqlite://x.db", "postgresql://h/db"])
def test_a_tracking_uri_that_cannot_be_is_refused_before_training(users_project, capsys, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "MLFLOW_TRACKING_URI" in refused(capsys, "train", *TINY)


def test_a_folder_that_is_no_project_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert "no conf/config.yaml" in refused(capsys, "train")
    assert "no sweeps/ folder" in refused(capsys, "sweep", "initializers")


def test_a_project_that_cannot_be_written_to_is_refused(users_project, capsys):
    (users_project / ".fanin").write_text("in the way")
    assert ".fanin: is a file" in refused(capsys, "train", *TINY)
    (users_project / ".fanin").unlink()
    users_project.chmod(0o555)
    try:
        if os.access(users_project, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert "cannot be written to" in refused(capsys, "train", *TINY)
    finally:
        users_project.chmod(0o755)


@pytest.mark.parametrize(
    ("file", "line", "key"),
    [("config.yaml", "  prune_on", "study.prune_on"), ("hardware/auto.yaml", "cluster", "hardware.cluster")],
)
def test_a_conf_of_an_earlier_version_is_told_which_key_it_lacks(project, capsys, file, line, key):
    (project / "conf").unlink()
    shutil.copytree(ROOT / "conf", project / "conf")
    lines = (project / "conf" / file).read_text().splitlines(keepends=True)
    (project / "conf" / file).write_text("".join(one for one in lines if not one.startswith(line)))
    assert main(["sweep", "initializers", "--dry-run"]) == 2
    assert f"{key}: conf/" in (said := capsys.readouterr().err) and "another version of fanin" in said
