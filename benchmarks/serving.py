"""What the benchmarks of the server share: a team's server, whose CPU time can be read, and finished runs for it."""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from figures import REPOSITORY, project

from fanin.folders import Folder, declare_run, declare_study
from fanin.spool import Spool

sys.path.insert(0, str(REPOSITORY / "tests"))
from native_stack import lacking, running_stack  # noqa: E402

__all__ = ["Spent", "Team", "declared", "finish", "lacking", "team"]


class Spent:
    """CPU seconds of the server and of PostgreSQL, those of their ended processes included."""

    def __init__(self, stack: Any):
        postmaster = int((stack.cluster.folder / "data" / "postmaster.pid").read_text().split()[0])
        ours = psutil.Process().children()
        self._roots = {
            "server": next(one for one in ours if {"mlflow", "server"} <= {*one.cmdline()}),
            "PostgreSQL": next(one for one in ours if one.pid == postmaster),
        }

    def read(self) -> dict[str, float]:
        return {name: _seconds(root) for name, root in self._roots.items()}


def _seconds(root: psutil.Process) -> float:
    total = 0.0
    for one in [root, *root.children(recursive=True)]:
        try:
            total += sum(one.cpu_times()[:4])  # user, system, and both of children that were waited for
        except psutil.NoSuchProcess:  # its time is in its parent's by now
            continue
    return total


@dataclass(frozen=True)
class Team:
    """A server with its services, a project folder, and processes that sweep."""

    stack: Any
    folder: Path
    sweeps: ProcessPoolExecutor


@contextmanager
def team(*, sweeps: int, workers: int) -> Iterator[Team]:
    """`sweeps` processes, and the services of docker-compose.yml with `workers` server processes; we are user ada."""
    with project() as folder:
        (folder / "server").mkdir()
        with running_stack(folder / "server", workers=workers) as stack:
            os.environ |= stack.variables("ada")
            with ProcessPoolExecutor(sweeps, mp_context=get_context("spawn")) as pool:
                yield Team(stack, folder, pool)


def declared(project: Path, name: str, specs: Sequence[dict[str, Any]]) -> list[Folder]:
    """A study with a run for each specification, begun."""
    study = declare_study(project, name, question="How fast?", swept=["optimizer.lr"], metric="val/accuracy")
    with Spool(study.spool) as log:
        log.append("start")
    return [declare_run(study, spec) for spec in specs]


def finish(run: Folder, *, keys: Sequence[str], epochs: int, seed: int) -> None:
    """What a run of so many epochs leaves in its spool; every number has all its digits."""
    draw = random.Random(seed)
    with Spool(run.spool) as log:
        log.append("start")
        for epoch in range(epochs):
            log.append("epoch", epoch=epoch, metrics={key: draw.random() for key in keys})
        log.append("end", status="FINISHED", reason=None, metrics={"test/accuracy": draw.random()}, step=epochs - 1)
