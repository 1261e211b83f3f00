"""Findings of real short runs, healthy and ill, and of made-up statistics at their thresholds."""

import json
import math

import pandas
import pytest
import yaml
from trained import Listener, configuration
from trained import train as train_anew

from fanin import diagnose
from fanin.diagnose import Classes
from fanin.errors import ConfigError
from fanin.run import Trainer
from fanin.sweep import diagnoses

DEEP = "model.widths=[128,128,128,128,128,128,128,128,128]"  # 10 layers
TRAINER = Trainer(threads=1)  # reads the data once
FEW = ("data.n_train=1500", "data.val=250", "epochs=2", "tracking=none")

HEALTHY = {
    "he": [],
    "xavier": ["initializer=xavier_uniform"],
    "orthogonal": ["initializer=orthogonal"],
    "he, 10 layers": [DEEP],
    "torch's default, 5 layers": ["model=mlp_deep", "model.widths=[128,128,128,128]", "initializer=torch_default"],
    "batch norm": ["regularization=batchnorm"],
    "batch norm, a small start, 10 layers": [DEEP, "regularization=batchnorm", "initializer=normal_002", "epochs=5"],
    "batch norm after N(0, 1)": ["regularization=batchnorm", "initializer=normal"],
    "layer norm": ["regularization=layernorm"],
    "dropout": ["regularization=dropout"],
    "tanh": ["model.activation=tanh", "initializer=xavier_normal"],
    "selu": ["model.activation=selu", "initializer=lecun_normal"],
    "sigmoid, 2 hidden layers": ["model.activation=sigmoid", "initializer=xavier_normal", "epochs=6"],
    "narrow and fast": ["model=mlp_narrow", "optimizer.lr=0.01", "batch_size=32"],
    "momentum": ["optimizer=momentum"],
    "softmax": ["model=softmax"],
    "only the last layer zeros": ["initializer=zero_last"],
    "a last layer that looks at black pixels": ["initializer=partial_identity", "model.widths=[784,256]"],
    "fixup": ["model=resmlp", "model.branch=fixup", "initializer=fixup"],
    "cnn with batch norm": ["model=cnn_small", "batch_size=32"],
    "cnn": ["model=cnn_small", "model.norm=none", "batch_size=32", "initializer=xavier_uniform"],
}
ILL = {
    "zeros": (["initializer=zeros"], {"symmetric_units", "dead_units", "dead_class"}),
    "constant": (["initializer=constant"], {"symmetric_units", "exploding_signal"}),
    "normal": (["initializer=normal"], {"exploding_signal"}),
    "uniform": (["initializer=uniform"], {"exploding_signal"}),
    "normal_002, 10 layers": ([DEEP, "initializer=normal_002"], {"vanishing_gradient"}),
    "tanh, 60 layers, whose gradient ends at 0": (
        ["model.depth=60", "model.width=64", "model.activation=tanh", "initializer=normal_002"],
        {"vanishing_gradient"},
    ),
    "sigmoid, 10 layers": (
        [DEEP, "model.activation=sigmoid", "initializer=xavier_normal"],
        {"vanishing_gradient", "dead_class"},
    ),
    "N(0, 1) under tanh": (["initializer=normal", "model.activation=tanh"], {"saturated_units"}),
    "Adam at 0.3": (["optimizer.lr=0.3"], {"step_too_large", "dead_units"}),
    "gradient descent at 30": (["optimizer=sgd", "optimizer.lr=30"], {"step_too_large"}),
    "gradient descent at 1e6": (["optimizer=sgd", "optimizer.lr=1e6"], {"step_too_large"}),
}


def train(config, folder, **how):
    return train_anew(config, folder, trainer=TRAINER, **how)


def findings(folder):
    return {one["name"]: one for one in json.loads((folder / "artifacts" / "diagnosis.json").read_text())}


QUICK = (
    "only the last layer zeros",
    "he",
    "xavier",
    "orthogonal",
    "batch norm",
    "he, 10 layers",
    "tanh",
    "softmax",
    "cnn with batch norm",
)
CASES = [
    pytest.param(overrides, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, overrides in HEALTHY.items()
]


@pytest.mark.parametrize("overrides", CASES)
def test_a_healthy_run_has_no_finding(project, overrides):
    digest = train(configuration(*FEW, *overrides), project / "run")
    assert findings(project / "run") == {} and "tags" not in digest.end


@pytest.mark.parametrize(("overrides", "expected"), ILL.values(), ids=ILL)
def test_an_ill_run_is_told_what_it_has(project, overrides, expected):
    digest = train(configuration(*FEW, *overrides), project / "run")
    found = findings(project / "run")
    assert expected <= found.keys() <= set(diagnose.NAMES)
    assert digest.end["tags"]["fanin.diagnosis"].startswith(f"{next(iter(found))}: ")
    assert len(digest.end["tags"]["fanin.diagnosis"]) < 150


def start(**changes):
    """The metrics of an epoch of a healthy network of two hidden layers."""
    metrics = {"train/loss": 1.0, "val/loss": 2.3, "diverged": 0.0}
    for layer in ("a", "b"):
        metrics |= {f"activation/{layer}/{name}": 0.1 for name in ("mean", "dead", "saturated")}
        metrics |= {f"signal/{layer}/{name}": 1.0 for name in ("forward_gain", "backward_gain")}
        metrics |= {f"weight/{layer}/row_spread": 5.0, f"weight/{layer}/norm": 3.0}
    return metrics | {key.replace("__", "/"): value for key, value in changes.items()}


THRESHOLDS = [
    ("dead_units", {"activation__b__dead": 0.75}, {"activation__b__dead": 0.87}, "b 87 %"),
    ("saturated_units", {"activation__a__saturated": 0.75}, {"activation__a__saturated": 0.9}, "a 90 %"),
    ("symmetric_units", {"weight__b__row_spread": 2e-3}, {"weight__b__row_spread": 1e-3}, "b spread 0.001"),
    ("vanishing_gradient", {"signal__a__backward_gain": 1e-6}, {"signal__a__backward_gain": 9e-8}, "a gets 0.0003 of"),
    ("exploding_signal", {"signal__b__forward_gain": 1e4}, {"signal__b__forward_gain": 4e4}, "b signal x 2e+02"),
    ("exploding_signal", {"signal__a__backward_gain": 1e6}, {"signal__a__backward_gain": 4e6}, "a gradient x 2e+03"),
]


@pytest.mark.parametrize(("name", "below", "above", "text"), THRESHOLDS)
def test_a_finding_begins_at_its_threshold_and_names_the_layer_and_the_number(name, below, above, text):
    assert diagnose.diagnose([start(**below), start(**below)]) == []
    (found,) = diagnose.diagnose([start(**above), start(**above)])
    assert found.name == name and found.text.startswith(text) and found.layer == text[0]


def test_a_step_is_too_large_if_the_loss_rises_while_the_weights_outgrow_their_start():
    grown = {f"weight__{layer}__norm": 9.0 for layer in "ab"}
    assert diagnose.diagnose([start(), start(**grown)]) == []
    assert diagnose.diagnose([start(), start(train__loss=5.0)]) == []
    (found,) = diagnose.diagnose([start(), start(train__loss=5.0, **grown)])
    assert found.short == "step_too_large: a norm x 3 in epoch 1"


def test_a_loss_that_is_no_number_has_its_cause_in_the_step_or_in_the_start():
    broken = start(diverged=1.0, train__loss=math.nan, weight__a__norm=math.nan, weight__b__norm=math.nan)
    assert [one.short for one in diagnose.diagnose([start(), broken])] == ["step_too_large: diverged in epoch 1"]
    ruins = start(signal__b__forward_gain=1e9)
    assert [one.name for one in diagnose.diagnose([ruins, broken | {"signal/b/forward_gain": math.nan}])] == [
        "exploding_signal"
    ]


def test_a_class_is_dead_if_there_are_images_of_it_and_none_is_taken_for_it():
    (found,) = diagnose.diagnose([start()], classes=Classes(images=[50, 9, 50], predicted=[109, 0, 0]))
    assert found.short == "dead_class: class 2 never predicted"
    (found,) = diagnose.diagnose([start()], classes=Classes(images=[50] * 3, predicted=[150, 0, 0]))
    assert found.short == "dead_class: 2 of 3 classes never predicted"


def test_with_batch_norm_the_untrained_network_is_not_judged():
    vanishing = start(signal__a__backward_gain=1e-9)
    assert diagnose.diagnose([vanishing], batch_norm=True) == []
    assert diagnose.diagnose([vanishing, start()], batch_norm=True) == []
    assert [one.name for one in diagnose.diagnose([vanishing] * 2, batch_norm=True)] == ["vanishing_gradient"]


def test_without_statistics_there_is_nothing_to_find():
    assert diagnose.diagnose([{"val/loss": 2.3, "train/loss": 2.4}]) == diagnose.diagnose([]) == []


def test_a_label_names_two_findings_and_counts_the_rest():
    found = diagnose.diagnose(
        [start(**{key: value for _, _, above, _ in THRESHOLDS[:4] for key, value in above.items()})]
    )
    assert [one.name for one in found] == ["symmetric_units", "vanishing_gradient", "saturated_units", "dead_units"]
    text = diagnose.label(found)
    assert text == "symmetric_units: b spread 0.001; vanishing_gradient: a gets 0.0003 of the gradient; +2 more"
    assert diagnose.name_of(text) == "symmetric_units"


def test_a_run_ends_with_the_epoch_that_shows_a_finding_its_study_prunes_on(project):
    overrides = ["initializer=zeros", "epochs=5", "study.prune_on=[saturated_units,symmetric_units]"]
    listener = Listener()
    digest = train(configuration(*FEW, *overrides), project / "run", listener=listener)
    assert digest.end["status"] == "KILLED" and digest.final
    assert digest.end["reason"] == "pruned: symmetric_units: layers.0 spread 0 and 1 more"
    assert [heard["epoch"] for heard in listener.heard] == [0]
    healthy = train(configuration(*FEW, "study.prune_on=[symmetric_units,dead_units]"), project / "healthy")
    assert healthy.end["status"] == "FINISHED" and healthy.last_epoch == 2


class Watched(dict):
    """Statistics of an epoch, that count how often they are gone through."""

    read = 0

    def items(self):
        self.read += 1
        return super().items()


def test_what_ends_a_run_is_looked_for_in_its_last_step_however_long_it_is():
    quiet = {"val/loss": 2.3, "train/loss": 0.5, "weight/a/norm": 1.0}
    epochs = [Watched(quiet) for _ in range(50)]
    assert diagnose.fatal(epochs, ["step_too_large"]) is None
    assert not any(epoch.read for epoch in epochs[1:-2])
    leap = Watched(quiet | {"weight/a/norm": 2.5, "train/loss": 3.0})
    assert diagnose.fatal([*epochs, leap], ["step_too_large"]) == "step_too_large: a norm x 2.5 in epoch 50"
    assert diagnose.fatal([*epochs, leap, leap], ["step_too_large"]) is None  # it was told an epoch ago
    assert [one.name for one in diagnose.diagnose([*epochs, leap, leap])] == ["step_too_large"]


def test_a_resumed_run_is_diagnosed_by_all_of_its_epochs(project):
    config = configuration(*FEW, "initializer=normal_002", DEEP, "epochs=3")
    train(config, project / "run", listener=Listener(stop_at=1), checkpoint=0)
    train(config, project / "run")
    assert "vanishing_gradient" in findings(project / "run")


def test_a_tag_says_what_the_file_has_in_full(project):
    train(configuration(*FEW, "initializer=zeros"), project / "run")
    found = findings(project / "run")["symmetric_units"]
    assert found == {
        "name": "symmetric_units",
        "layer": "layers.0",
        "value": 0.0,
        "text": "layers.0 spread 0 and 1 more",
    }
    assert yaml.safe_load((project / "run" / "artifacts" / "config.yaml").read_text())["initializer"]


TABLE = pandas.DataFrame(
    {
        "variant": list("aabbc"),
        "initializer": ["zeros", "zeros", "normal", "normal", "he_normal"],
        "diagnosis": ["symmetric_units: x spread 0", "symmetric_units: x spread 0; dead_units: x 100 %", None,
                      "exploding_signal: y signal x 2e+03 from input to logits", None],
    }
)  # fmt: skip


def test_the_end_of_a_sweep_tells_the_diagnosis_of_each_variant():
    told = diagnoses.tell(TABLE, by=["initializer"])
    assert told is not None
    text, markdown = told
    assert text.splitlines()[1:] == [
        "  zeros   2 of 2  symmetric_units: x spread 0",
        "  normal  1 of 2  exploding_signal: y signal x 2e+03 from input to logits",
    ]
    assert "| zeros | 2 of 2 | symmetric_units: x spread 0 |" in markdown
    assert diagnoses.tell(TABLE.assign(diagnosis=None), by=["initializer"]) is None


def test_a_key_that_a_variant_does_not_have_is_a_dash():
    table = pandas.DataFrame(
        {"initializer": ["mup", "zeros"], "base_width": [64.0, None], "diagnosis": ["a: b", "c: d"]}
    )
    told = diagnoses.tell(table, by=["initializer", "base_width"])
    assert told and [line.split("  ")[1] for line in told[0].splitlines()[1:]] == ["mup 64", "zeros -"]


def test_a_long_table_of_diagnoses_fits_the_terminal():
    many = pandas.DataFrame(
        {
            "initializer": [f"{number:02d} " + "long " * 40 for number in range(30)],
            "diagnosis": ["dead_units: layers.0" + " 90 %" * 50] * 20 + ["symmetric_units: x spread 0"] * 9 + [None],
        }
    )
    told = diagnoses.tell(many, by=["initializer"])
    assert told and max(map(len, told[0].splitlines())) <= 100
    assert told[0].splitlines()[-1] == "  ... and 17 more variants. Of 30 runs: dead_units 20, symmetric_units 9"


@pytest.mark.parametrize("value", ["[dead_unit]", "[dead_class]"])
def test_a_finding_that_no_run_can_be_pruned_on_is_refused(project, value, capsys):
    from fanin.app import main

    assert main(["sweep", "initializers", "--dry-run", f"study.prune_on={value}", *FEW]) == 2
    assert "study.prune_on" in capsys.readouterr().err


def test_pruning_on_statistics_that_are_not_measured_is_refused():
    with pytest.raises(ConfigError, match="study.prune_on: needs statistics"):
        diagnose.check_measured(["dead_units"], stats="off")
