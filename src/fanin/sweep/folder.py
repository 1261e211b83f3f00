"""A study's state on disk, `.fanin/<study>/` (see folders.py): who owns it now, which question it holds, and
how its runs ended.

    study.json    the question's identity, as first asked (or extended since)
    spool.jsonl   the study's own record; the live owner holds its lock, which the kernel drops when it dies
    owner.json    who has, or had, that lock
    journal.log   Optuna's storage, for searches
"""

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from fanin import spool
from fanin.errors import ConfigError
from fanin.folders import Folder, read_json, write_json, write_whole
from fanin.spool import Spool, SpoolBusy
from fanin.sweep.identity import check_extension, difference, obstacles


@dataclass(frozen=True)
class Outcome:
    """How a run ended, read from its spool: `metrics` are the final values of every key."""

    status: str  # FINISHED | FAILED | KILLED
    reason: str | None
    metrics: Mapping[str, float]
    epochs: int
    seconds: float
    diagnosis: str | None = None  # what is wrong with it, in short

    @property
    def final(self) -> bool:
        """Nothing left to do: finished (diverged included) or pruned, not failed or interrupted."""
        return spool.is_final(self.status, self.reason)

    @property
    def pruned(self) -> bool:
        return spool.is_pruned(self.status, self.reason)


class StudyFolder:
    """Opened by the one process that owns the study; `close` (or death, of any kind) gives it up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "runs").mkdir(parents=True, exist_ok=True)
        try:
            self.spool = Spool(path / "spool.jsonl", wait=0.5)
        except SpoolBusy:
            owner = read_json(path / "owner.json")
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
            raise ConfigError(
                f"study {path.name!r} is in use by {who}; wait for it, or stop it and run this again"
            ) from None
        write_json(path / "owner.json", {"pid": os.getpid(), "host": socket.gethostname()})

    @property
    def folder(self) -> Folder:
        return Folder(self.path)

    def close(self) -> None:
        self.spool.close()

    def admit(
        self,
        identity: Mapping[str, Any],
        *,
        extend: bool,
        flags: tuple[str, str, str] = ("--extend", "--new", "study.name=..."),
        points: Collection[str] | None = None,
    ) -> None:
        """Check the question against the one the folder holds, or write it down as the first. `flags`: what
        the user writes to extend the study, to start over, and to keep both; `points`: the keys of a grid's
        variants."""
        identity = json.loads(json.dumps(identity, default=str))
        path = self.path / "study.json"
        if path.exists():
            held = json.loads(path.read_text())["identity"]
            changes = difference(held, identity)
            if changes and not extend:
                ways = [f"{flags[1]} puts its runs aside and starts over", f"{flags[2]} keeps both"]
                if not obstacles(held, identity):
                    ways = [f"{flags[0]} keeps its runs and adds points or replicates", *ways]
                lines = [f"study {self.path.name!r} holds another question:", *changes, "; ".join(ways)]
                raise ConfigError("\n  ".join(lines))
            if changes:
                check_extension(held, identity, flag=flags[0])
                self._check_kept(points, flag=flags[0])
        write_json(path, {"identity": identity, "born": self.born}, indent=1)

    def _check_kept(self, points: Collection[str] | None, *, flag: str) -> None:
        """An extension leaves no run behind: those of points that are gone would be in no table any more."""
        for path in sorted((self.path / "runs").glob("*/run.json")):
            run = json.loads(path.read_text())
            if points is not None and run["variant"] not in points:
                raise ConfigError(
                    f"{flag} adds points and replicates, and this space has no {run['name']!r} as it was run"
                )

    @property
    def born(self) -> str:
        """When the study was first run: tells apart the studies that bear one name in turn (`--new`)."""
        path = self.path / "study.json"
        return json.loads(path.read_text())["born"] if path.exists() else stamp()

    def bury(self) -> list[Folder]:
        """End the runs that a dead owner left without an end; they are gone on with when their turn comes."""
        spools = sorted((self.path / "runs").glob("*/spool.jsonl"))
        reason = "interrupted: its process died"
        return [Folder(path.parent) for path in spools if spool.bury(path, reason=reason)]

    def epochs(self) -> int:
        """How many epochs of training the runs have recorded, in all sessions."""
        paths = sorted((self.path / "runs").glob("*/spool.jsonl"))
        return sum(spool.digest(spool.read(path)[0]).last_epoch or 0 for path in paths)

    def run(self, key: str) -> Path:
        return self.path / "runs" / key

    def plan_run(self, spec: Mapping[str, Any]) -> Path:
        """Write a run's specification, once; what is on disk is what gets trained."""
        folder = self.run(spec["key"])
        path = folder / "run.json"
        if not path.exists():
            write_whole(path, json.dumps(spec, default=str).encode())
        return folder


def archive(path: Path) -> Path | None:
    """Put a study's folder aside (`--new`); returns where it lies now, or None if there was none."""
    if not path.exists():
        return None
    folder = StudyFolder(path)  # refuses when a live process owns it
    folder.bury()
    if spool.last(folder.spool.path) not in ("", "end"):
        folder.spool.append("end", status="KILLED", reason="its process died", metrics={})
    aside = unused(path.with_name(f"{path.name}.until-{stamp()}"))
    path.rename(aside)
    folder.close()
    return aside


def unused(path: Path) -> Path:
    """The path, or path-2 and so on if there is something of that name already: clocks are put back, and milliseconds
    are shared."""
    names = chain([path.name], (f"{path.name}-{i}" for i in count(2)))
    return next(one for name in names if not (one := path.with_name(name)).exists())


def outcome(folder: Path) -> Outcome | None:
    """The outcome of the run in `folder`, or None if it has none (never started, or interrupted by death)."""
    records, _ = spool.read(folder / "spool.jsonl")
    digest = spool.digest(records)
    if digest.end is None:
        return None
    metrics: dict[str, float] = {}
    for record in digest.epochs:
        metrics |= record["metrics"]
    end = digest.end
    return Outcome(
        status=end["status"],
        reason=end.get("reason"),
        metrics=metrics | end.get("metrics", {}),
        epochs=digest.last_epoch or 0,
        seconds=end.get("seconds", 0.0),
        diagnosis=(end.get("tags") or {}).get("fanin.diagnosis"),
    )


def stamp() -> str:
    now = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now * 1000) % 1000:03d}"
