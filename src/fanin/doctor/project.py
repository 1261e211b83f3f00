"""What this project has: the records of its sweeps, its configuration, and the data sets that names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fanin import spool
from fanin.doctor.finding import NOTE, OK, PROBLEM, Finding, number_of
from fanin.doctor.store import state_database, tracking
from fanin.errors import ConfigError
from fanin.folders import MEMORY, Folder
from fanin.lock import is_held

if TYPE_CHECKING:
    from fanin.sweep.compose import Composer


def records(project: Path) -> Iterator[Finding]:
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
        text = f"{number_of(dead, 'run')} ended without a word ({names}); the same command goes on with them"
        yield Finding(NOTE, "records", text)
    else:
        yield Finding(OK, "records", f"{number_of(spools, 'run')} in {MEMORY}/")


def configured(project: Path) -> Iterator[Finding]:
    """What needs the project's configuration: its data sets and its tracking store."""
    from fanin.sweep.compose import Composer
    from fanin.sweep.launch import OWN_CONFIG, project_loader

    try:
        with project_loader() as (loader, found):
            composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
            default = composer.compose()
            yield Finding(OK, "project", f"{project} with {number_of(_studies(project), 'study', 'studies')}")
            for name in composer.options("data"):
                yield _data(composer, name, wanted=name == default.choices["data"])
            address = default.state or os.environ.get("FANIN_STATE_URI")
            yield from tracking(project, default.config["tracking"], state=address)
            yield from state_database(address)
    except ConfigError as error:
        yield Finding(PROBLEM, "project", str(error))


def _studies(project: Path) -> list[Path]:
    return sorted((project / "sweeps").glob("*.yaml"))


def _data(composer: "Composer", name: str, *, wanted: bool) -> Finding:
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
