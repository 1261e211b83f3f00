"""What single choices of conf/ do to a run, from its configuration on."""

import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor, nn
from trained import SMALL, configuration, configurations, train

from fanin.build import build
from fanin.checkpoint import Progress
from fanin.evaluation import evaluate
from fanin.run import Trainer
from fanin.training import epochs_of

CONF = Path(__file__).parent.parent / "conf"
REGULARIZERS = sorted(path.stem for path in (CONF / "regularization").glob("*.yaml"))
IDLE = ("none", "early_stopping")  # they change no step
SIZE = 300  # test images of digits


def one_epoch(config: dict, trainer: Trainer) -> tuple[dict[str, float], Tensor]:
    """The metrics of the untrained network, and the weights after an epoch."""
    split = trainer._split(config)
    parts = build(config, shape=split.images.shape[1:], device="cpu", train_size=len(split.train))
    progress = Progress()
    records = list(epochs_of(config, parts, split, progress=progress, epochs=1))
    parts.model.load_state_dict(progress.weights(parts.model))
    return records[0].metrics, nn.utils.parameters_to_vector(parts.model.parameters()).detach()


def test_every_regularizer_acts_in_training_and_only_norms_change_the_untrained_network(project):
    small = [*SMALL, "model=resmlp", "model.width=16", "model.depth=2", "stats=off", "regularization.max_norm=0.9"]
    bounded = ["regularization.max_norm=null"]  # of the others: digits and 16 units stay far below 3
    lists = [[*small, *(bounded if name != "max_norm" else []), f"regularization={name}"] for name in REGULARIZERS]
    found = dict(
        zip(REGULARIZERS, map(one_epoch, configurations(lists), [Trainer(threads=1)] * len(lists)), strict=True)
    )
    untrained, weights = found["none"]
    for name, (metrics, other) in found.items():
        is_norm = name in ("batchnorm", "noisy_batchnorm", "layernorm", "groupnorm")
        assert (metrics["val/loss"] == untrained["val/loss"]) != is_norm, name
        changed = len(other) != len(weights) or not torch.equal(other, weights)
        assert changed == (name not in IDLE), name


def test_predictions_of_no_class_have_a_column_of_their_own(project):
    few = ("model=mlp_miswired", "initializer=normal", "optimizer=sgd", "optimizer.lr=1e-9", "epochs=1")
    digest = train(configuration(*SMALL, *few), project / "run")
    table = pandas.read_csv(project / "run" / "artifacts" / "confusion_matrix.csv", index_col="true")
    assert table.shape == (11, 11) and table.to_numpy().sum() == SIZE
    assert table["10"].sum() > SIZE / 2  # 502 of 512 outputs stand for nothing
    assert digest.end["metrics"]["test/accuracy"] == np.diag(table)[:10].sum() / SIZE


@pytest.mark.parametrize(("model", "classes"), [("mlp_miswired", 512), ("mlp_deep", 10)])
def test_the_initial_loss_tells_a_miswired_network_from_the_one_that_was_meant(project, model, classes):
    """ln 512 = 6.24 for 512 logits, ln 10 = 2.30 for ten; a little more, as the logits are not 0 (6.24 +- .2)."""
    config = configuration("data.n_train=1000", f"model={model}", "initializer=xavier_uniform", "stats=off")
    split = Trainer(threads=1)._split(config)
    parts = build(config, shape=split.images.shape[1:], device="cpu", train_size=1000)
    found = evaluate(parts.model, split.images, split.labels, index=split.train)
    assert found.loss == pytest.approx(math.log(classes), abs=0.2)
