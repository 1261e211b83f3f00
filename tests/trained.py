"""Runs trained in this process by a worker's own handler, from configurations composed from conf/."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanin import spool
from fanin.run import Trainer
from fanin.sweep.compose import Composer
from fanin.sweep.launch import OWN_CONFIG, project_loader

# Real digits, few of them: a run takes a fraction of a second.
SMALL = ("data=digits", "data.n_train=200", "data.val=100", "model=mlp_narrow", "epochs=2", "tracking=none")

# A module for a project folder: images of MNIST's shape, so few that any model is through with them at once.
HANDFUL = """
import numpy as np


def handful(channels=1):
    draw = np.random.default_rng(0)
    images = draw.random((60, channels, 28, 28), dtype=np.float32)
    labels = np.arange(60) % 10
    return (images[:40], labels[:40]), (images[40:], labels[40:])
"""
FEW = ("data=own", "data._target_=handful.handful", "~data.path", "data.val=20", "epochs=1", "tracking=none")


@dataclass
class Listener:
    """Stands for the coordinator: hears a run's records, and answers with a verdict or a wish to stop."""

    verdict: str | None = None
    stop_at: float = math.inf  # epoch
    heard: list[Any] = field(default_factory=list)

    @property
    def stopped(self) -> str | None:
        return "interrupted" if self.heard and self.heard[-1]["epoch"] >= self.stop_at else None

    def send(self, kind: str, payload: Any) -> None:
        self.heard.append(payload)

    def ask(self, kind: str, payload: Any) -> str | None:
        self.send(kind, payload)
        return self.verdict


def configurations(lists: list[list[str]]) -> list[dict[str, Any]]:
    """Composed in the current project folder, one for each list of overrides."""
    with project_loader() as (loader, found):
        composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
        return [composer.compose(overrides).config for overrides in lists]


def configuration(*overrides: str) -> dict[str, Any]:
    return configurations([list(overrides)])[0]


def train(
    config: dict[str, Any],
    folder: Path,
    *,
    listener: Listener | None = None,
    trainer: Trainer | None = None,
    judged: bool = False,
    checkpoint: float = math.inf,
) -> spool.Digest:
    """Train the run, and return what its spool then says. `checkpoint`: seconds between two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = {
        "folder": str(folder),
        "spec": {"config": config},
        "judged": judged,
        "watched": ["val/loss"],
        "checkpoint": checkpoint,
    }
    (trainer or Trainer(threads=1))("run", payload, listener or Listener())
    return recorded(folder)


def recorded(folder: Path) -> spool.Digest:
    return spool.digest(spool.read(folder / "spool.jsonl")[0])
