"""The look at initialized networks before anything is trained: verdicts, the dry run's table, what is left out."""

import json
import math
import time

import pytest
import torch
from torch import nn
from trained import Listener, configuration, configurations

from fanin import preflight
from fanin.app import main
from fanin.models import Mlp
from fanin.run import Trainer
from fanin.sweep.preflight import network

TRAINER = Trainer(threads=1)
DEEP = "model.widths=[128,128,128,128,128,128,128,128,128]"  # 10 layers
FEW = ("data.n_train=300", "data.val=100", "epochs=1", "tracking=none", "hardware.workers=1")


def fly(*overrides: str) -> dict:
    (found,) = TRAINER("preflight", [configuration("tracking=none", *overrides)], Listener())
    return found


VERDICTS = {
    "he": ([], "ok"),
    "xavier, 10 layers": ([DEEP, "initializer=xavier_uniform"], "ok"),
    "softmax": (["model=softmax"], "ok"),
    "cnn": (["model=cnn_small"], "ok"),
    "zeros": (["initializer=zeros"], "symmetric"),
    "zeros with dropout, which breaks no symmetry of zeros": (
        ["initializer=zeros", "regularization=dropout"],
        "vanishes",
    ),
    "zeros with random biases": (["initializer=zeros", "initializer.bias=torch_default"], "vanishes"),
    "constant": (["initializer=constant"], "symmetric"),
    "constant with random biases": (["initializer=constant", "initializer.bias=torch_default"], "explodes"),
    "normal": (["initializer=normal"], "explodes"),
    "normal under batch norm": (["initializer=normal", "regularization=batchnorm"], "ok"),
    "normal_002, 10 layers": (["initializer=normal_002", DEEP], "vanishes"),
    "normal_002, 10 layers under batch norm": (
        ["initializer=normal_002", DEEP, "regularization=batchnorm"],
        "ok",
    ),
    "sigmoid, 10 layers": (["model.activation=sigmoid", "initializer=xavier_normal", DEEP], "vanishes"),
    "he under much dropout, 30 layers": ([f"model.widths={[64] * 29}", "regularization.dropout=0.5"], "explodes"),
    "only the last layer zeros": (["initializer=zero_last"], "ok"),
    "a last layer that looks at black pixels": (
        ["initializer=partial_identity", "model.widths=[784,256]"],
        "ok",
    ),
    "ordered tanh, so deep that nothing is left of the gradient": (
        ["model.activation=tanh", "initializer=normal_002", "model.depth=60", "model.width=64"],
        "vanishes",
    ),
    "muP with a readout of zeros": (
        ["initializer=mup", "initializer.base_width=64", "initializer.readout=zeros"],
        "ok",
    ),
    "lsuv, which looks at data": (["initializer=lsuv", DEEP], "ok"),
    "64 blocks of fixup": (["model=resmlp", "model.depth=64", "model.branch=fixup", "initializer=fixup"], "ok"),
    "64 blocks of rezero": (["model=resmlp", "model.depth=64", "model.branch=gated", "initializer=rezero"], "ok"),
    "64 plain blocks": (["model=resmlp", "model.depth=64"], "explodes"),
    "a belief network, which is trained": (["model.activation=sigmoid", "initializer=dbn"], "unknown"),
    "metainit, which is trained": (["initializer=metainit"], "unknown"),
    "gradinit, which is trained": (["initializer=gradinit"], "unknown"),
}


@pytest.mark.parametrize(("overrides", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_a_networks_verdict_is_given_before_it_is_trained(project, overrides, verdict):
    found = fly(*overrides)
    assert found["verdict"] == verdict
    assert bool(found["reason"]) == (verdict != "ok")


def test_an_initializer_that_looks_at_data_is_flown_as_the_run_will_start(project):
    found = fly("initializer=lsuv", DEEP, "data.scale=standard")
    assert found["forward"] == pytest.approx(1, abs=0.03)  # what lsuv makes of every layer
    assert fly("initializer=dbn", "model.activation=sigmoid")["reason"].startswith("its initializer is trained")


def test_gains_are_measured_as_training_would_see_them(project):
    still, dropping = fly(DEEP), fly(DEEP, "regularization=dropout", "regularization.dropout=0.3")
    for side in ("forward", "backward"):
        assert still[side] == pytest.approx(still[f"predicted_{side}"], rel=0.15)
        assert dropping[f"predicted_{side}"] > 1.2 * still[f"predicted_{side}"]
    deep = fly(f"model.widths={[300] * 15}", "regularization=batchnorm")
    assert deep["backward"] == pytest.approx(deep["predicted_backward"], rel=0.15)
    assert deep["predicted_backward"] > 1.4  # pi / (pi - 1) in the limit of depth


def twins(model):
    hidden = preflight.hidden_layers(model, torch.rand(2, 1, 2, 2))
    assert hidden == {"layers.0", "layers.1"}
    return preflight.twins(model, hidden=hidden)


def test_units_with_the_same_weights_but_different_biases_are_not_the_same():
    model = Mlp(in_shape=(1, 2, 2), classes=3, widths=[4, 4], activation="tanh", norm="none", dropout=0.0)
    assert twins(model) == ""
    nn.init.constant_(model.layers[1].weight, 0.5)
    assert twins(model) == ""
    nn.init.zeros_(model.layers[1].bias)
    assert twins(model) == "layers.1"


@pytest.mark.parametrize("scale", [1e-30, math.nan])
def test_units_of_tiny_or_broken_weights_are_no_copies(scale):
    model = Mlp(in_shape=(1, 2, 2), classes=3, widths=[4, 4], activation="tanh", norm="none", dropout=0.0)
    nn.init.zeros_(model.layers[0].bias)
    with torch.no_grad():
        model.layers[0].weight *= scale
    assert twins(model) == ""


def test_a_flight_takes_milliseconds(project):
    config = configuration("tracking=none")
    TRAINER("preflight", [config], Listener())
    began = time.process_time()
    TRAINER("preflight", [config] * 5, Listener())
    assert (time.process_time() - began) / 5 < 0.25  # 20 ms on a machine at rest


def test_a_flight_depends_on_nothing_but_the_configuration(project):
    torch.manual_seed(1)
    first = fly("regularization=dropout")
    torch.manual_seed(2)
    assert fly("regularization=dropout", "optimizer=sgd") == first
    assert fly("regularization=dropout", "seed=1") != first


def test_mean_gains_know_zero_infinity_and_nothing():
    assert preflight.mean_gain([2.0, 8.0]) == pytest.approx(4)
    assert preflight.mean_gain([0.0, 8.0]) == 0 and preflight.mean_gain([math.inf, 1.0]) == math.inf
    assert preflight.mean_gain([4.0, 0.0, math.inf, 1.0]) == pytest.approx(2)  # the signal goes around a branch
    assert preflight.mean_gain([]) is preflight.mean_gain([math.nan]) is None


def test_a_dry_run_shows_every_variants_gains_and_verdict(project, capsys):
    assert main(["sweep", "initializers", "--dry-run", *FEW]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "initializer=" in line}
    assert lines["initializer=zeros"].endswith("symmetric") and lines["initializer=normal"].endswith("explodes")
    assert lines["initializer=he_normal"].endswith("  ok") and lines["initializer=he_normal"].count("(") == 2
    assert all(len(line) <= 100 for line in lines.values())


def test_a_dry_run_says_why_a_verdict_is_unknown_and_counts_the_pretraining(project, capsys):
    sigmoid = ["model.activation=sigmoid", "initializer=xavier_normal,dbn", "study.replicates=1", "epochs=0"]
    few = [one for one in FEW if not one.startswith("epochs")]
    assert main(["sweep", "initializers", "--dry-run", *sigmoid, *few]) == 0
    shown = capsys.readouterr().out
    assert "  unknown: its initializer is trained on the data: measured in the run\n" in shown
    assert "of training by 1 worker" in shown.rpartition("estimate")[2]  # without epochs: of the machines


def test_hopeless_variants_are_warned_of_and_stored_or_left_out(project, capsys):
    folder = project / ".fanin" / "initializers"
    space = ["initializer=zeros,he_normal,normal", "study.replicates=1"]
    assert main(["sweep", "initializers", *space, *FEW, "study.preflight=skip"]) == 0
    out = capsys.readouterr().out
    assert "left out: initializer=zeros: symmetric: all units of layers.0 are the same" in out
    rows = {row["name"]: row for row in json.loads((folder / "preflight.json").read_text())}
    assert [name for name, row in rows.items() if row["skipped"]] == ["initializer=zeros", "initializer=normal"]
    assert len(list((folder / "runs").iterdir())) == 1
    assert main(["sweep", "initializers", *space, *FEW, "study.preflight=skip"]) == 0  # again: nothing is left to do
    assert "nothing was left to do" in capsys.readouterr().out
    assert main(["sweep", "initializers", *space, *FEW]) == 2  # another question
    assert "preflight" in capsys.readouterr().err
    assert main(["sweep", "initializers", *space, *FEW, "--new"]) == 0
    assert "pre-flight: initializer=normal: explodes" in capsys.readouterr().out
    assert len(list((folder / "runs").iterdir())) == 3


REFUSED = {
    "a word that is no mode": (["study.preflight=maybe"], "study.preflight"),
    "skip of a search": (
        ["study.preflight=skip", "hydra/sweeper=random", "hydra.sweeper.max_trials=2"],
        "skip needs a grid",
    ),
    "skip that leaves nothing": (["study.preflight=skip", "initializer=zeros,normal"], "skip leaves no variant"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_a_preflight_that_makes_no_sense_is_refused(project, capsys, overrides, message):
    assert main(["sweep", "initializers", *overrides, *FEW]) == 2
    assert message in capsys.readouterr().err


FLAT = """
import numpy as np


def flat():
    part = np.full((60, 1, 28, 28), 0.5, dtype=np.float32), np.arange(60) % 10
    return part, part
"""


def test_what_an_initializer_refuses_to_look_at_is_refused_before_the_first_run(project, capsys, monkeypatch):
    (project / "flat.py").write_text(FLAT)
    monkeypatch.syspath_prepend(str(project))
    own = ["data=own", "data._target_=flat.flat", "~data.path", "data.val=20", "tracking=none", "hardware.workers=1"]
    assert main(["sweep", "initializers", "initializer=he_normal,lsuv", "study.replicates=1", *own]) == 2
    assert "initializer: lsuv needs images that differ" in capsys.readouterr().err
    assert not list(project.glob(".fanin/*/runs/*"))


def test_variants_that_start_from_the_same_network_are_flown_once(project):
    lists = [["optimizer.lr=0.1"], ["optimizer.lr=0.2"], ["initializer=zeros"]]
    keys = [network(config) for config in configurations(lists)]
    assert keys[0] == keys[1] != keys[2]
