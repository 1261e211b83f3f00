"""`fanin doctor`: what this machine and this project have, and what is wrong, in one line each with the way out.

A PROBLEM keeps something that was asked for from working; a note is good to know. Nothing is changed, nothing
downloaded.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanin import spool
from fanin.errors import ConfigError
from fanin.folders import MEMORY, Folder
from fanin.lock import is_held
from fanin.provenance import git_commit, versions

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
GIB = 2**30
LEAST_DISK, LITTLE_DISK = 0.5, 5  # GiB
LITTLE_MEMORY = 1  # GiB
PATIENCE = 5  # s until a locked database counts as one


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    level: str  # ok | note | PROBLEM
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.subject:<10}{self.text}"


def examine(project: Path) -> int:
    """Print the findings as they come. Returns 1 if one of them is a PROBLEM, else 0."""
    problems = 0
    for finding in findings(project):
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    print(f"\n{problems} problem{'s' * (problems != 1)} found" if problems else "\nnothing is wrong")
    return 1 if problems else 0


def findings(project: Path) -> Iterator[Finding]:
    yield from _python()
    yield from _torch()
    yield from _machine(project)
    yield from _git(project)
    yield from _records(project)
    yield from _project(project)


def _python() -> Iterator[Finding]:
    found = versions()
    yield Finding(OK, "python", f"{found['python']} with fanin {found['fanin']}, {found['platform']}")
    others = ("hydra-core", "mlflow", "optuna", "pandas", "numpy")
    missing = [name for name in others if found[name] == "not installed"]
    if missing:
        yield Finding(PROBLEM, "packages", f"{', '.join(missing)} not installed; make setup installs all")
    else:
        yield Finding(OK, "packages", ", ".join(f"{name} {found[name]}" for name in others))


def _torch() -> Iterator[Finding]:
    import torch  # slow: the lines before it are on the screen meanwhile

    try:
        from fanin.vision import torchvision

        yield Finding(OK, "torch", f"{torch.__version__} with torchvision {torchvision.__version__}")
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding(PROBLEM, "torch", f"{torch.__version__}, but torchvision cannot be imported: {_line(error)}")
    yield _device(torch)


def _device(torch: Any) -> Finding:
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
        return Finding(OK, "device", f"cuda: {names}")
    if torch.backends.mps.is_available():
        return Finding(OK, "device", "mps (Apple GPU)")
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        way = "make setup TORCH=auto installs a build that can"
        return Finding(NOTE, "device", f"cpu; this torch cannot use the NVIDIA GPU that seems to be here: {way}")
    return Finding(OK, "device", "cpu; no GPU that torch can use")


def _machine(project: Path) -> Iterator[Finding]:
    import psutil

    from fanin.sweep.devices import core_count

    yield Finding(OK, "cores", f"{core_count()} for this process, each with a worker of one thread in a sweep")
    free = psutil.virtual_memory().available / GIB
    little = free < LITTLE_MEMORY
    way = "; a worker takes about 0.4 GiB: fewer of them, hardware.workers=1" * little
    yield Finding(NOTE if little else OK, "memory", f"{free:.1f} GiB free{way}")
    room = shutil.disk_usage(project).free / GIB
    if room < LEAST_DISK:
        yield Finding(PROBLEM, "disk", f"{room:.2f} GiB free, too little for the records of a sweep")
    else:
        yield Finding(NOTE if room < LITTLE_DISK else OK, "disk", f"{room:.1f} GiB free")


def _git(project: Path) -> Iterator[Finding]:
    commit = git_commit(project)
    if commit is None:
        text = "no repository here: runs will not say which version of your files they are of (git init)"
        yield Finding(NOTE, "git", text)
    elif commit.endswith("+changes"):
        text = f"commit {commit[:10]} with changes that are not committed; runs are marked so"
        yield Finding(NOTE, "git", text)
    else:
        yield Finding(OK, "git", f"commit {commit[:10]}")


def _records(project: Path) -> Iterator[Finding]:
    """What earlier sweeps left in the project's folder."""
    memory = project / MEMORY
    place = memory if memory.exists() else project
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, "records", f"{place} cannot be written to: no run could be recorded")
        return
    spools = sorted(memory.glob("*/runs/*/spool.jsonl"))
    dead = [path for path in spools if spool.last(path) not in ("", "end") and not is_held(path)]
    if dead:
        names = ", ".join(sorted({Folder(path.parent).study.path.name for path in dead}))
        text = f"{_count(dead, 'run')} ended without a word ({names}); the same command goes on with them"
        yield Finding(NOTE, "records", text)
    else:
        yield Finding(OK, "records", f"{_count(spools, 'run')} in {MEMORY}/")


def _project(project: Path) -> Iterator[Finding]:
    """What needs the project's configuration: its data sets and its tracking store."""
    from fanin.sweep.compose import Composer
    from fanin.sweep.launch import OWN_CONFIG, project_loader

    try:
        with project_loader() as (loader, found):
            composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
            default = composer.compose()
            yield Finding(OK, "project", f"{project} with {_count(_studies(project), 'study', 'studies')}")
            for name in composer.options("data"):
                yield _data(composer, name, wanted=name == default.choices["data"])
            address = default.state or os.environ.get("FANIN_STATE_URI")
            yield from _tracking(project, default.config["tracking"], state=address)
            yield from _state(address)
    except ConfigError as error:
        yield Finding(PROBLEM, "project", str(error))


def _studies(project: Path) -> list[Path]:
    return sorted((project / "sweeps").glob("*.yaml"))


def _data(composer: Any, name: str, *, wanted: bool) -> Finding:
    """Whether a data set is here, could be downloaded, is missing or broken."""
    from fanin import data
    from fanin.build import part

    try:
        config = composer.compose([f"data={name}"]).config
        with part(config, "data") as (loader, options):
            offline = options | ({"download": False} if "download" in options else {})
            try:
                outline = data.check(loader, **offline)
                return Finding(OK, "data", f"{name}: {outline.train:,} + {outline.test:,} images")
            except data.Missing:
                data.check(loader, **options)  # complains unless it may be downloaded
                root = f"into {options.get('root')}/"
                return Finding(OK, "data", f"{name}: not here; the first run downloads it {root}")
    except data.Missing as error:
        return Finding(PROBLEM if wanted else NOTE, "data", f"{name}: {error}")
    except ConfigError as error:
        return Finding(PROBLEM, "data", f"{name}: {error}")


def _tracking(project: Path, settings: Mapping[str, Any], *, state: str | None = None) -> Iterator[Finding]:
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


def _asking(tracker: Any, file: Path | None, faults: list[Finding]) -> Callable[[str, str], bool]:
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


def _has(tracker: Any, file: Path | None, run: str) -> bool:
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


def _state(address: str | None) -> Iterator[Finding]:
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


def _server(tracker: Any) -> Finding:
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
    return Finding(OK, "tracking", f"{file} has {_count(range(count), 'run')}")


def _count(things: Any, one: str, many: str = "") -> str:
    return f"{len(things):,} {one if len(things) == 1 else many or one + 's'}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
