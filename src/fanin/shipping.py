"""Brings the tracking store up to date with the spools: exactly once in effect.

Delivery is at least once (shipped.json is written after the store has answered), and a repetition changes
nothing: points carry the timestamps of their records, so MLflow's SQL stores keep one of equal ones; a run is
looked for by its tags before it is created; a param is logged only where it is missing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fanin import archive, points, spool, view
from fanin.description import Description, clean_tags, describe_run, describe_study, swept_values
from fanin.folders import Folder, Shipped, remembered
from fanin.lock import exclusive
from fanin.noise import factors_of
from fanin.spool import Digest, Record, Spool, SpoolBusy
from fanin.tracking import TrackedRun, Tracker, TrackingDown, TrackingForgot, TrackingRefused

IDENTITY = ("fanin.study", "fanin.run", "mlflow.parentRunId")
FOLDED = 50  # variants whose replicates are folded away on the study's page; to read more run.json costs time


@dataclass(frozen=True)
class Batch:
    """What a run's store does not have yet."""

    params: Mapping[str, str]
    points: list[points.Point]


class StudyLost(TrackingRefused):
    """Another machine has taken the study over; what is here of it is past."""


class StudyBusy(TrackingDown):
    """A living sweep of this project holds the study, and sees to it itself."""


class Guard(Protocol):
    """Of a study whose state is shared: what another machine could not go on from is not shipped."""

    def note(self, folder: Folder) -> None:
        """Hear that something of the folder has ended, or was shipped."""

    def secure(self, folder: Folder) -> None:
        """Return when all that the folder has may be shipped. Raises StudyLost, StudyBusy, TrackingDown or
        TrackingRefused."""


def ship(
    folder: Folder,
    *,
    tracker: Tracker,
    guard: Guard | None = None,
    forgot: Callable[[Folder], None] = lambda study: None,
) -> bool:
    """Send what the store does not have yet of a run or a study; True if its end has been sent, too. `forgot` hears of
    a study that the store had and has no more: all of it is to be shipped again.

    Raises TrackingDown or TrackingRefused, with nothing lost: call again, at any time, from any process. A disk
    too full for what is written on the way (the artifacts, shipped.json) counts as down: room can be made.
    """
    try:
        with exclusive(folder.study.path / "shipping.lock"):
            return _ship_somewhere(folder, tracker, guard, forgot)
    except OSError as error:
        raise TrackingDown(f"{error.filename or folder.path}: {error.strerror or error}") from error


def _ship_somewhere(folder: Folder, tracker: Tracker, guard: Guard | None, forgot: Callable[[Folder], None]) -> bool:
    try:
        return _ship(folder, tracker, guard)
    except TrackingForgot:
        _start_over(folder.study, tracker)
        ended = _ship(folder, tracker, guard)
        forgot(folder.study)
        return ended


def _start_over(study: Folder, tracker: Tracker) -> None:
    """Another store is at the same address: it gets all of the study, which the spools have."""
    tracker.forget()
    for runs in study.variants().values():
        for run in runs:
            run.forget()
    study.forget()


def _look_after(folder: Folder, tracker: Tracker) -> None:
    """Start over if the store has lost a study of which there is nothing new to ship, so that nobody would notice."""
    study, known = folder.study, folder.shipped(tracker.address).run
    if known and folder == study:
        try:
            tracker.check(known)
        except TrackingForgot:
            with exclusive(study.path / "shipping.lock"):
                _start_over(study, tracker)


def unshipped(study: Folder, *, uri: str) -> Iterator[Folder]:
    """The study and those of its runs of whose spools the store at `uri` has not everything."""
    for path in [study.spool, *sorted(study.path.glob("runs/*/spool.jsonl"))]:
        folder = Folder(path.parent)
        if path.exists() and folder.shipped(uri).offset != path.stat().st_size:
            yield folder


def _ship(folder: Folder, tracker: Tracker, guard: Guard | None) -> bool:
    shipped = folder.shipped(tracker.address)
    records, offset = spool.read(folder.spool, shipped.offset)
    if records:
        whole, _ = spool.read(folder.spool)
        _flush(folder.spool)
        if guard:
            guard.secure(folder)  # of at least what was read
        shipped = replace(_send(folder, tracker, shipped, records, whole, guard), offset=offset)
        folder.remember(shipped)
    if shipped.status == "FINISHED":
        folder.tidy()
    ended = shipped.status not in ("", "RUNNING")
    if guard and records and ended:
        guard.note(folder)
    return ended


def _send(
    folder: Folder,
    tracker: Tracker,
    shipped: Shipped,
    records: Sequence[Record],
    whole: Sequence[Record],
    guard: Guard | None,
) -> Shipped:
    history = spool.digest(whole)
    description = _describe(folder, tracker, guard)
    missing: Mapping[str, str] = {}
    if not shipped.run:
        known = _open(folder, tracker, shipped, description, started=whole[0]["time"])
        if description.data:
            tracker.log_data(known.id, description.data)
        shipped = replace(shipped, run=known.id, status=known.status)
        missing = {key: value for key, value in description.params.items() if key not in known.params}
    if folder == folder.study:
        _arrange(folder, tracker, run=shipped.run)
    fresh = Batch(missing, points.curve_points(records))
    if history.end:
        return _send_end(folder, tracker, shipped, description, whole, fresh)
    if shipped.status != "RUNNING":  # a run that had ended was resumed
        tracker.reopen(shipped.run)
    tags = {} if shipped.status == "RUNNING" else {"fanin.reason": ""}
    tracker.log(shipped.run, params=fresh.params, points=fresh.points, tags=tags)
    return replace(shipped, status="RUNNING")


def _send_end(
    folder: Folder,
    tracker: Tracker,
    shipped: Shipped,
    description: Description,
    whole: Sequence[Record],
    fresh: Batch,
) -> Shipped:
    history = spool.digest(whole)
    assert history.end
    last, tags = points.end_points(whole, history), _end_tags(history)
    if history.final:  # one that is gone on with may get better: its best are not known yet
        last = points.best_points(history) + last
    if history.end["status"] == "FINISHED" and folder != folder.study:
        every = points.curve_points(whole) + last
        tags |= {archive.TAG: archive.write(folder.artifacts / archive.FILE, every)}
    _upload(folder, tracker, shipped.run, description)
    tracker.log(shipped.run, params=fresh.params, points=fresh.points + last, tags=tags)
    tracker.end(shipped.run, status=history.end["status"], time=history.end["time"])
    if shipped.doubtful:
        _remove_doubles(folder, tracker, shipped.run, description)
    return replace(shipped, status=history.end["status"], doubtful=False)


def _arrange(study: Folder, tracker: Tracker, *, run: str) -> None:
    """The study's page in MLflow: anew whenever it starts or ends, for it may have more variants then. `run`: its
    own."""
    spec, variants = study.spec(), study.variants()
    first = [runs[0] for runs in variants.values() if (runs[0].path / "run.json").exists()]
    swept = factors_of(spec["swept"]) or spec["swept"]
    page = view.arrange(
        swept,
        metric=spec["metric"],
        direction=spec["direction"],
        replicated=spec.get("replicates", 1) > 1
        or len(swept) < len(spec["swept"])
        or any(len(runs) > 1 for runs in variants.values()),
        variants=[swept_values(run.spec(), swept) for run in first] if len(first) <= FOLDED else (),
        parent=run,
    )
    tracker.arrange(spec["study"], page, question=spec["question"])


def _describe(folder: Folder, tracker: Tracker, guard: Guard | None) -> Description:
    study = folder.study
    if folder == study:
        return describe_study(folder.spec())
    parent = study.shipped(tracker.address).run
    if not parent:
        _ship(study, tracker, guard)
        parent = study.shipped(tracker.address).run
        assert parent, f"{study.spool}: append a start record before any run of the study is shipped"
    return describe_run(folder.spec(), study=study.spec(), parent=parent)


def _open(folder: Folder, tracker: Tracker, shipped: Shipped, description: Description, *, started: int) -> TrackedRun:
    """Find the run, else create it: neither a crash nor a lost reply may make a second one."""
    known = _find(folder, tracker, description)
    if known:
        return known[0]
    if folder != folder.study:
        tracker.check(description.tags["mlflow.parentRunId"])
    folder.remember(replace(shipped, doubtful=True))
    created = tracker.create(description.tags["fanin.study"], description, started=started)
    return TrackedRun(created, "RUNNING", frozenset(), True)


def _find(folder: Folder, tracker: Tracker, description: Description) -> list[TrackedRun]:
    tags = {key: description.tags[key] for key in IDENTITY if key in description.tags}
    return tracker.find(description.tags["fanin.study"], tags)


def _remove_doubles(folder: Folder, tracker: Tracker, run: str, description: Description) -> None:
    """Delete what requests created whose reply was lost, if they were carried out after we looked."""
    for other in _find(folder, tracker, description):
        if other.id != run and other.empty:
            tracker.delete(other.id)


def _upload(folder: Folder, tracker: Tracker, run: str, description: Description) -> None:
    for path, text in description.files.items():
        target = folder.artifacts / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    if folder.artifacts.exists():
        tracker.upload(run, folder.artifacts)


def _end_tags(history: Digest) -> dict[str, str]:
    end = history.end or {}
    tags = {"fanin.attempts": str(history.attempts)}
    if end.get("reason") or history.attempts > 1:  # an earlier attempt may have had one
        tags["fanin.reason"] = end.get("reason") or ""
    if end.get("note"):
        tags["mlflow.note.content"] = end["note"]
    return clean_tags(tags | (end.get("tags") or {}))


def _flush(path: Path) -> None:
    """Put the spool on the disk for good: a power failure must not make it forget what the store knows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class SyncReport:
    shipped: int  # runs and studies the store has in full
    running: int  # that a living process still writes
    ended: tuple[Folder, ...]  # whose process was gone, so that they were ended as KILLED
    left: dict[Path, str]  # not in the store -> why
    gone: dict[Path, str] = field(default_factory=dict)  # studies that another machine has taken over -> which
    files: int = 0  # runs of those that got the files which only we had


def sync(
    project: str | Path,
    *,
    tracker: Tracker,
    guard: Guard | None = None,
    twin: Callable[[Folder], str] = lambda run: "",
) -> SyncReport:
    """Ship everything the project remembers, and end what died without a word; of a shared study only if the
    `guard` lets us. If not, a run that ended here, and that the new owner of the study has shipped as it is here (its
    `twin` in MLflow), still gets its files."""
    left: dict[Path, str] = {}
    shipped, running, ended, gone, files = 0, 0, [], {}, 0
    down = ""
    for folder in remembered(Path(project).resolve()):
        try:
            if guard:
                guard.secure(folder)
            if _end_if_dead(folder):
                ended.append(folder)
            if down:
                raise TrackingDown(down)
            _look_after(folder, tracker)
            complete = ship(folder, tracker=tracker, guard=guard)
        except StudyBusy:
            running += 1
        except StudyLost as error:
            gone[folder.study.path] = str(error)
            files += _bring_files(folder, tracker, twin, left)
        except TrackingDown as error:  # would be down for the next ones, too
            left[folder.path] = down = str(error)
        except TrackingRefused as error:
            left[folder.path] = str(error)
        else:
            shipped, running = shipped + complete, running + (not complete)
    tracker.settle()
    return SyncReport(shipped, running, tuple(ended), left, gone, files)


def _bring_files(folder: Folder, tracker: Tracker, twin: Callable[[Folder], str], left: dict[Path, str]) -> bool:
    """Add the files of a run that has ended to its twin in MLflow, where they replace their likes; what keeps them from
    it goes to `left`. Nothing is to be done if this MLflow has no twin: it was deleted for good, or is in another."""
    if folder == folder.study or not folder.artifacts.exists():
        return False
    if not spool.digest(spool.read(folder.spool)[0]).final:
        return False
    try:
        if run := twin(folder):
            tracker.check(run)
            tracker.upload(run, folder.artifacts)
            folder.tidy()
    except TrackingForgot:
        return False
    except (TrackingDown, TrackingRefused) as error:
        left[folder.path] = f"its files: {error}"
        return False
    return bool(run)


def _end_if_dead(folder: Folder) -> bool:
    """End a run that has no end and no living writer, unless a living coordinator will see to it."""
    if spool.digest(spool.read(folder.spool)[0]).end:
        return False
    try:
        with Spool(folder.study.spool, wait=0) as study:
            if folder == folder.study:
                return study.append("end", status="KILLED", reason="its process died")
            with Spool(folder.spool, wait=0) as run:
                return run.append("end", status="KILLED", reason="its process died")
    except SpoolBusy:
        return False
