"""A sweep's study in PostgreSQL (tracking.state; fanin.shared says what of it, and why it is safe): taken hold of
and fetched before the first run, kept up to date until the last."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin import spool
from fanin.errors import ConfigError, require
from fanin.folders import read_json
from fanin.shared.connection import KEY
from fanin.shared.copies import SHIPPED, SPOOL, STUDY
from fanin.shared.exchange import MARK, Exchange, mark_of
from fanin.shared.keeper import Keeper
from fanin.sweep.folder import StudyFolder, archive, stamp
from fanin.sweep.study import Study
from fanin.tracking import TrackingDown, TrackingRefused

if TYPE_CHECKING:  # they come with Optuna and SQLAlchemy
    from fanin.sweep.mirror import Mirror
    from fanin.sweep.search import Search

LAST = 1.0  # s that the end of a sweep waits for what is still to be copied; `fanin sync` copies the rest


@contextmanager
def open_state(study: Study, path: Path) -> Iterator["Local | Shared"]:
    """Where the state of the study in the folder `path` is kept. Raises ConfigError, before anything is changed, if
    another coordinator has it or it cannot be had."""
    address = study.base.state if study.own else None
    if address is None:
        yield Local(path)
        return
    tracked = study.base.config["tracking"]["uri"] != "none"
    require(tracked, KEY, "is shared beside MLflow's runs: choose tracking=server", "tracking.uri=none")
    exchange = Exchange(address, path)
    with understood():
        exchange.take()
    try:
        yield Shared(exchange)
    finally:
        exchange.close()


@contextmanager
def understood() -> Iterator[None]:
    """Before the first run, what PostgreSQL refuses or cannot do is bad input."""
    try:
        yield
    except TrackingRefused as error:
        raise ConfigError(str(error)) from error
    except TrackingDown as error:
        way = "without it nobody knows what is done; start it, or unset FANIN_STATE_URI to keep studies here only"
        raise ConfigError(f"{error}; {way}") from error


class Local:
    """The state is in the project's folder only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def settle(self, *, new: bool) -> Path | None:
        """Put aside what is to be begun anew; returns where it lies."""
        mark = mark_of(self.path)
        if mark and not new:
            raise ConfigError(
                f"{KEY}: the state of {self.path.name!r} is kept in PostgreSQL at {mark['place']}: set "
                f"FANIN_STATE_URI and tracking=server; to go on without it, remove {self.path / MARK}"
            )
        return archive(self.path) if new else None

    def fetch(self, folder: StudyFolder) -> None:
        """All there is, is here."""

    def own(self) -> None:
        """The lock of the folder is enough."""

    @contextmanager
    def kept(self, search: "Search | None") -> Iterator[None]:
        yield None


class Shared:
    """The state is in PostgreSQL, and this coordinator holds it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.path = exchange, exchange.path

    def settle(self, *, new: bool) -> Path | None:
        """As above, there and here. A folder of an earlier study of this name is put aside, too; one that was never
        shared, with another study in it, is refused."""
        with understood():
            there = self.exchange.identity()
            if new:
                aside = archive(self.path)
                if there:
                    name = self.exchange.put_aside(aside.name if aside else f"{self.path.name}.until-{stamp()}")
                    return aside and aside.rename(aside.with_name(name))  # one name, there and here
                return aside
        here = self.path / STUDY
        if there and here.exists() and _born(here.read_bytes()) != _born(there):
            if mark_of(self.path) is None:
                name = self.path.name
                raise ConfigError(
                    f"two studies are called {name!r}: one in {self.path}, and one in PostgreSQL, begun "
                    f"{_born(there)}; move the folder away to go on with that one, or study.name=... names yours anew"
                )
            return archive(self.path)
        return None

    def fetch(self, folder: StudyFolder) -> None:
        before = spool.read(folder.spool.path)[0]
        with understood():
            runs = [folder.run(key) for key in self.exchange.fetch(folder.spool)]
        sessions = spool.read(folder.spool.path)[0]
        died = sessions not in ([], before) and sessions[-1]["kind"] == "start"
        for line in _fetched(runs, died=_host(sessions) if died else ""):
            print(f"  {line}")

    def own(self) -> None:
        """Once the study is admitted: its former owner writes nothing any more."""
        with understood():
            self.exchange.own()

    @contextmanager
    def kept(self, search: "Search | None") -> Iterator[Keeper]:
        """While it lasts, what is recorded here is copied there, and optuna-dashboard shows the `search`, if any."""
        mirror = self._mirror(search) if search else None
        keeper = Keeper(self.exchange, after=mirror.update if mirror else None)
        try:
            yield keeper
        finally:
            if keeper.close(LAST) and mirror:
                mirror.close()

    def _mirror(self, search: "Search") -> "Mirror":
        from fanin.sweep.mirror import Mirror

        return Mirror(search.study, address=self.exchange.address)


def _fetched(runs: Sequence[Path], *, died: str) -> Iterator[str]:
    """What came from other machines, and what of it did not: checkpoints, and files that were not uploaded yet. `died`:
    the machine whose sweep has ended without a word; of what it was training nobody else knows."""
    if runs:
        yield f"{len(runs)} run{'s' * (len(runs) != 1)} of other machines fetched from PostgreSQL"
    spools = {run: spool.read(run / SPOOL)[0] for run in runs}
    final = {run: spool.digest(records).final for run, records in spools.items()}
    if bare := [run for run in runs if final[run] and not _is_shipped(run)]:
        way = "`fanin sync` there adds them"
        there = ", ".join(sorted({_host(spools[run]) for run in bare}))
        yield f"{len(bare)} of them ended before MLflow had their files, which are on {there}: {way}"
    begun = {_host(spools[run]) for run in runs if not final[run] and spool.digest(spools[run]).epochs}
    if there := ", ".join(sorted(begun | ({died} if died else set()))):
        yield f"what was under way on {there} is trained again from epoch 1: its checkpoints are there, not here"


def _is_shipped(run: Path) -> bool:
    return (read_json(run / SHIPPED) or {}).get("offset") == (run / SPOOL).stat().st_size


def _host(records: Sequence[spool.Record]) -> str:
    """The machine that wrote a spool last."""
    return str([record for record in records if record["kind"] == "start"][-1]["host"])


def _born(content: bytes) -> Any:
    return json.loads(content)["born"]
