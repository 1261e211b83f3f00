"""Commands that must be refused, and a user's own code that gives reason for it."""

from pathlib import Path

from fanin.app import main

TINY = ["data=digits", "data.n_train=100", "epochs=1", "model=mlp_narrow", "hardware.workers=1"]
WITHOUT = ("~model.widths", "~model.activation")  # options of the default model; a class of one's own has none of them
USERS = '''
import os
import sys
import time

import torch
from torch import nn


class Linear(nn.Module):
    """A model of the user's own; `fault` says where it fails."""

    def __init__(self, in_shape, classes, fault="none"):
        super().__init__()
        self.fault = fault
        if fault == "constructor":
            raise RuntimeError("no such constant")
        size = in_shape[0] * in_shape[1] * in_shape[2]
        self.layer = nn.Linear(size if fault != "shape" else 3, classes)

    def forward(self, images):
        if self.fault == "training" and self.training and not images.is_meta:
            raise RuntimeError("it broke in the middle")
        if self.fault == "forward":
            return self.layer(images.flatten(1).nonsense)
        return self.layer(images.flatten(1))


class NoModule:
    def __init__(self, in_shape, classes): ...


def no_parameters(): ...
def loader(): raise OSError("the disk is gone")
def wrong_loader(): return 3
def slow_net(size): ...
def slow_loader(): raise KeyError("train")
def crash(weight, *, generator): os.abort()
def leave(weight, *, generator): sys.exit(3)
def never_end(weight, *, generator): time.sleep(3600)
'''


def refused(capsys, *arguments: str) -> str:
    """The message of a command that must be refused before anything is recorded."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.startswith("fanin: ") and "Traceback" not in printed.err
    assert not list(Path(".fanin").glob("*")) if Path(".fanin").is_dir() else True
    assert not Path("mlflow.db").exists() and not Path("mlartifacts").exists()
    return printed.err
