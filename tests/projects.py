"""Projects of their own for real sweeps: our conf/, a database, a small study, and models that take their time."""

from conftest import ROOT
from recorded import new_database

STUDY = """\
# @package _global_
defaults:
  - override /model: mlp_narrow
study:
  question: What survives?
  replicates: {replicates}
  preflight: "off"
epochs: {epochs}
batch_size: 20
data: {{n_train: {images}, val: 100}}
stats: "off"
hydra:
  sweeper:
    params:
      initializer: {initializers}
"""
MODELS = '''\
import time
from contextlib import suppress
from pathlib import Path

from torch import nn


class Net(nn.Module):
    """A user's own model: one linear layer, and something to do in every step."""

    def __init__(self, in_shape, classes):
        super().__init__()
        self.layer = nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], classes)

    def forward(self, images):
        if self.training and len(images) > 2:  # not when the configuration is checked
            self.act()
        return self.layer(images.flatten(1))

    def act(self):
        pass


class Slow(Net):
    """Whose steps take as many seconds as the file "slow" says, while there is one."""

    def act(self):
        with suppress(FileNotFoundError):
            time.sleep(float(Path("slow").read_text()))
'''
SLOW = ("model=softmax", "model._target_=mine.Slow")


def new_project(folder, *, models=""):
    """`folder`, made if it is missing, with mine.py: Net, Slow, and the text `models` after them."""
    folder.mkdir(exist_ok=True)
    (folder / "conf").symlink_to(ROOT / "conf")
    (folder / "mine.py").write_text(MODELS + models)
    new_database(folder / "mlflow.db")
    return folder


def write_study(project, *, name="faults", initializers="he_normal,xavier_uniform", replicates=2, epochs=3, images=200):
    """A small study in the project's own sweeps/."""
    (project / "sweeps").mkdir(exist_ok=True)
    text = STUDY.format(initializers=initializers, replicates=replicates, epochs=epochs, images=images)
    (project / "sweeps" / f"{name}.yaml").write_text(text)
