"""What a sweep delivers to MLflow while it trains, and how long its end waits for that."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fanin.folders import Folder
from fanin.shared.keeper import Keeper
from fanin.sweep.schedule import Ships, Tally
from fanin.sweep.study import Study

FLUSH = 30.0  # seconds the end of a sweep waits for MLflow; `fanin sync` ships what is left
LEAVE = 7.0  # seconds from the signal that interrupts a sweep to its end, MLflow or not
AT_ONCE = 0.5


class Shipper(Ships, Protocol):
    """What a sweep asks of its shipper, besides what the coordinator does."""

    def catch_up(self, study: Folder) -> None:
        """Ship what earlier sessions of a study left."""
        ...

    def close(self, timeout: float) -> list[Folder]:
        """Ship what waits, for at most `timeout` seconds; the folders that are not fully shipped."""
        ...


class Unshipped:
    """Stands for the shipper where nothing is shipped."""

    status = ""

    def nudge(self, folder: Folder, *, ended: bool = False) -> None:
        """The record stays in the spool."""

    def catch_up(self, study: Folder) -> None:
        """So does what earlier sessions left."""

    def close(self, timeout: float) -> list[Folder]:
        return []


@contextmanager
def shipping(study: Study, project: Path, *, guard: Keeper | None = None) -> Iterator[Shipper]:
    """A thread that ships to the tracking store the configuration names, or nothing with tracking=none; what
    is shipped, the `guard` has seen."""
    tracking = study.base.config["tracking"] if study.own else {"uri": "none"}
    if tracking["uri"] == "none":
        yield Unshipped()
        return
    from fanin import shipper
    from fanin.tracking import Tracker

    tracker = Tracker(project=project, uri=tracking["uri"], artifacts=tracking["artifacts"])
    thread = shipper.Shipper(tracker, guard=guard)
    try:
        yield thread
    finally:
        thread.close(AT_ONCE)


def flush(shipper: Shipper, tally: Tally) -> None:
    """Wait until MLflow has everything, but not for ever."""
    patience = FLUSH
    if tally.signalled is not None:
        patience = max(AT_ONCE, tally.signalled + LEAVE - time.monotonic())
    left = shipper.close(patience)
    if left:
        why = f" ({shipper.status})" if shipper.status else ""
        print(
            f"fanin: {len(left)} runs are not fully in MLflow yet{why}; `fanin sync` ships the rest",
            file=sys.stderr,
        )
