"""A study's folder, `.fanin/<study>/`: who owns it now, which question it holds, and its runs' outcomes.

    study.json            the question's identity, as first asked (or extended)
    lock                  the live owner; the kernel releases the lock when the owner dies, however it dies
    journal.log           Optuna's storage, for searches
    runs/<run key>/       run.json, spool.jsonl, checkpoint.pt, artifacts/
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanin import spool
from fanin.errors import ConfigError
from fanin.sweep.study import check_extension, difference


@dataclass(frozen=True)
class Outcome:
    """How a run ended, read from its spool: `metrics` are the final values of every key."""

    status: str  # FINISHED | FAILED | KILLED
    reason: str | None
    metrics: Mapping[str, float]
    epochs: int
    seconds: float

    @property
    def final(self) -> bool:
        """Nothing left to do: finished (diverged included) or pruned, not failed or interrupted."""
        return self.status == "FINISHED" or (self.reason or "").startswith("pruned")


class StudyFolder:
    """Opened by the one process that owns the study; `close` (or death) gives it up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "runs").mkdir(parents=True, exist_ok=True)
        self._lock = self._take()

    def close(self) -> None:
        self._lock.close()

    def _take(self) -> Any:
        handle = open(self.path / "lock", "a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise ConfigError(
                f"study {self.path.name!r} is in use by {owner}; wait for it, or stop it and run this again"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        return handle

    def admit(self, identity: Mapping[str, Any], *, extend: bool) -> None:
        """Check the question against the one the folder holds, or write it down as the first."""
        identity = json.loads(json.dumps(identity, default=str))
        path = self.path / "study.json"
        if path.exists():
            held = json.loads(path.read_text())["identity"]
            changes = difference(held, identity)
            if changes and not extend:
                raise ConfigError(
                    f"study {self.path.name!r} holds another question:\n  " + "\n  ".join(changes) + "\n"
                    "  --extend keeps its runs and adds points or replicates; --new puts them aside and starts over"
                )
            if changes:
                check_extension(held, identity)
        write_atomically(path, json.dumps({"identity": identity, "name": self.path.name}, indent=1))

    def run(self, key: str) -> Path:
        return self.path / "runs" / key

    def plan_run(self, spec: Mapping[str, Any]) -> Path:
        """Write a run's specification, once; what is on disk is what gets trained."""
        folder = self.run(spec["key"])
        path = folder / "run.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(spec, default=str))
        return folder


def archive(path: Path) -> str | None:
    """Put a study's folder aside (`--new`); returns the name it has now, or None if there was none."""
    if not path.exists():
        return None
    folder = StudyFolder(path)  # refuses when a live process owns it
    aside = f"{path.name}.until-{time.strftime('%Y%m%d-%H%M%S')}"
    path.rename(path.with_name(aside))
    folder.close()
    return aside


def outcome(folder: Path) -> Outcome | None:
    """The outcome of the run in `folder`, or None if it has none (never started, or interrupted by death)."""
    records, _ = spool.read(folder / "spool.jsonl")
    if not records or records[-1]["kind"] != "end":
        return None
    end = records[-1]
    metrics: dict[str, float] = {}
    epochs = 0
    for record in records:
        if record["kind"] == "epoch":
            metrics |= record["metrics"]
            epochs = record["epoch"]
    return Outcome(end["status"], end.get("reason"), metrics | end.get("metrics", {}), epochs, end.get("seconds", 0.0))


def attempts(folder: Path) -> int:
    records, _ = spool.read(folder / "spool.jsonl")
    return sum(record["kind"] == "start" for record in records)


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
