"""What the tracking store has, and what of the project's runs it lacks."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin.doctor.finding import NOTE, OK, PROBLEM, Finding, number_of
from fanin.errors import ConfigError
from fanin.folders import MEMORY, Folder
from fanin.lock import is_held

if TYPE_CHECKING:
    from fanin.tracking import Tracker

PATIENCE = 5  # s until a locked database counts as one


def tracking(project: Path, settings: Mapping[str, Any], *, state: str | None = None) -> Iterator[Finding]:
    from fanin.tracking import Tracker, sqlite_file

    if settings["uri"] == "none":
        yield Finding(NOTE, "tracking", "none: runs stay in .fanin/, and MLflow does not have them")
        return
    try:
        tracker = Tracker(project=project, uri=settings["uri"], artifacts=settings["artifacts"])
    except ConfigError as error:
        yield Finding(PROBLEM, "tracking", str(error))
        return
    file = sqlite_file(tracker.uri)
    store = _server(tracker) if file is None else _database(file)
    yield store
    faults: list[Finding] = []
    answers = store.level != PROBLEM
    has = _asking(tracker, file, faults) if answers else lambda study, run: True
    left = _left(project, tracker.address, has)
    yield from faults
    gone = {study for study in {folder.study for folder in left} if _is_gone(study, state)}
    if left := [folder for folder in left if folder.study not in gone]:
        are = "run is" if len(left) == 1 else "runs are"
        names = ", ".join(sorted({folder.study.path.name for folder in left}))
        text = f"{len(left):,} {are} in {MEMORY}/ and not (completely) in the store: fanin sync ships them ({names})"
        yield Finding(NOTE, "tracking", text)


def _left(project: Path, uri: str, has: Callable[[str, str], bool]) -> list[Folder]:
    """The runs, of studies that no living sweep sees to, of which the store has not everything: as shipping remembers
    it, or all of a study whose own run the store has lost."""
    from fanin.shipping import unshipped

    left: list[Folder] = []
    for study in [Folder(path.parent) for path in sorted((project / MEMORY).glob("*/run.json"))]:
        if study.spool.exists() and is_held(study.spool):
            continue
        run = study.shipped(uri).run
        if run and not has(study.path.name, run):
            left += [Folder(path.parent) for path in sorted(study.path.glob("runs/*/spool.jsonl"))]
        else:
            folders = list(unshipped(study, uri=uri))
            left += [folder for folder in folders if folder != study] or folders
    return left


def _is_gone(study: Folder, state: str | None) -> bool:
    """Whether another machine has taken the study over, which then ships its runs."""
    from fanin.shared import glance
    from fanin.tracking import TrackingDown, TrackingRefused

    try:
        return state is not None and glance.is_taken_over(state, study.path)
    except (ConfigError, TrackingDown, TrackingRefused):  # which is a finding of its own
        return False


def _asking(tracker: "Tracker", file: Path | None, faults: list[Finding]) -> Callable[[str, str], bool]:
    """Whether the store has a study's run, as far as it says. What keeps it from saying goes to `faults`; after one
    that would be the same for all studies, none is asked for any more."""
    from fanin.tracking import TrackingDown, TrackingRefused

    down = False

    def has(study: str, run: str) -> bool:
        nonlocal down
        try:
            return down or _has(tracker, file, run)
        except (TrackingDown, sqlite3.Error) as error:
            down = True
            faults.append(Finding(PROBLEM, "tracking", _fault(file, error)))
        except TrackingRefused as error:
            faults.append(Finding(PROBLEM, "tracking", f"study {study!r}: {error}"))
        return True

    return has


def _fault(file: Path | None, error: Exception) -> str:
    if _is_locked(error):
        return f"{file} is locked by another program; what it lacks waits in {MEMORY}/ until that one is done"
    return str(error) if file is None else f"{file}: {error}"


def _is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY  # without what the kinds of busy add


def _has(tracker: "Tracker", file: Path | None, run: str) -> bool:
    """Whether the store has the run; of an SQLite `file`, without MLflow."""
    from fanin.tracking import TrackingForgot

    if file is None:
        try:
            tracker.check(run)
        except TrackingForgot:
            return False
        return True
    if not file.exists():
        return False
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as connection:
        return connection.execute("select 1 from runs where run_uuid = ?", [run]).fetchone() is not None


def state_database(address: str | None) -> Iterator[Finding]:
    """The database of studies, if one is named."""
    from fanin.shared.connection import connect, place_of
    from fanin.tracking import TrackingDown, TrackingRefused

    if address is None:
        return
    try:
        connect(address).close()
    except (ConfigError, TrackingDown, TrackingRefused) as error:
        yield Finding(PROBLEM, "state", f"{error}; or unset FANIN_STATE_URI to keep studies here only")
    else:
        yield Finding(OK, "state", f"{place_of(address)} answers; tracking=server keeps studies there")


def _server(tracker: "Tracker") -> Finding:
    from fanin.tracking import TrackingDown, TrackingRefused

    try:
        tracker.connect()
    except (TrackingDown, TrackingRefused) as error:
        way = "start it, or unset MLFLOW_TRACKING_URI to keep runs in mlflow.db here"
        return Finding(PROBLEM, "tracking", f"{error}; {way}")
    return Finding(OK, "tracking", f"{tracker.address} answers")


def _database(file: Path) -> Finding:
    """Of an SQLite store: looked at without MLflow, which would create or migrate it."""
    from fanin.schema import TESTED_REVISIONS, revisions

    if not file.exists():
        return Finding(OK, "tracking", f"{file} will be made by the first run")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as connection:
            schema = revisions(connection)
            (count,) = connection.execute("select count(*) from runs").fetchone()
    except sqlite3.Error as error:
        if _is_locked(error):
            return Finding(PROBLEM, "tracking", _fault(file, error))
        way = "move it away, and fanin sync writes a new one from what .fanin/ has"
        return Finding(PROBLEM, "tracking", f"{file} is no MLflow database ({error}); {way}")
    if not os.access(file, os.W_OK):
        return Finding(PROBLEM, "tracking", f"{file} cannot be written to")
    if not schema <= TESTED_REVISIONS:
        text = f"{file} has the schema of another MLflow; if runs are refused: mlflow db upgrade sqlite:///{file}"
        return Finding(NOTE, "tracking", text)
    return Finding(OK, "tracking", f"{file} has {number_of(range(count), 'run')}")
