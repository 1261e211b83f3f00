"""One study's folder and its copy in PostgreSQL, over a session that holds the study. For several threads."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fanin.folders import Folder, read_json, write_json
from fanin.shared import hold
from fanin.shared.connection import ANSWER, KEY, connect, place_of, translated
from fanin.shared.copies import JOURNAL, SHIPPED, SPEC, SPOOL, STUDY, Sender, Unlike, fetch, listed
from fanin.shared.tables import check, prepare
from fanin.shared.watch import Watch
from fanin.spool import Spool
from fanin.tracking import TrackingDown

if TYPE_CHECKING:
    from psycopg import Connection

MARK = "shared.json"  # in a study's folder: it is shared, where, and under which generation we had it last
NOT_OURS = -1  # a generation: the folder has what was fetched, and its sweep was refused then
BATCH = 50  # runs sent in one transaction
FETCHED = 120.0  # s for what is fetched by one query to come; the server gives up then, too


class Exchange:
    """Opened by `take`, for a sweep, which owns the study after `own`, or by `reopen`, for what an ended one has left.
    Every method raises TrackingRefused (StudyLost, if the study went to somebody else) or TrackingDown; the next call
    connects again."""

    def __init__(self, address: str, path: Path) -> None:
        self.path, self.study = path, path.name
        self.place = place_of(address)
        self.generation = 0
        self.address = address
        self._connection: Connection | None = None
        self._watch = Watch()
        self._sender: Sender | None = None
        self._using = threading.Lock()

    def take(self) -> None:
        """Keep everybody else off the study. Raises ConfigError, naming the owner, if one lives."""
        with self._answered(ANSWER):
            connection = self._connect()
            with self._watch.at_most(ANSWER):
                prepare(connection, place=self.place)
                self.generation = hold.take(connection, self.study)

    def reopen(self, generation: int) -> None:
        """Hold the study on, if nobody took it over since it was ours. Raises StudyLost if somebody did."""
        self.generation = generation
        with self._session() as connection:
            check(connection, place=self.place)

    def put_aside(self, aside: str) -> str:
        """Keep what there is of the study under another name (`aside`, if no study there and no other folder here has
        it), which is returned: the study is begun anew."""
        taken = {one.name for one in self.path.parent.glob(f"{self.study}.until-*")} - {aside}
        with self._session() as connection:
            return hold.put_aside(connection, self.study, self.generation, aside=aside, taken=taken)

    def identity(self) -> bytes:
        """The content of study.json as others see it; empty if there is none yet."""
        query = "select data from fanin_piece where study = %s and file = %s"
        with self._session() as connection:
            row = connection.execute(query, [self.study, STUDY]).fetchone()
        return bytes(row[0]) if row else b""

    def fetch(self, spool: Spool) -> list[str]:
        """Bring the folder, whose own `spool` is open, up to the copy; returns the keys of the runs that came."""
        with self._session(FETCHED) as connection:
            there = listed(connection, self.study)
            heard = self._watch.heard
            heard()
            keys = fetch(connection, self.study, there, folder=self.path, spool=spool, heard=heard)
            self._sender = Sender(self.study, self.path, there, rewritten=(JOURNAL,))
            self._mark(NOT_OURS)
        return keys

    def own(self) -> None:
        """Be the owner from now on, of what was fetched."""
        with self._session() as connection:
            self.generation = hold.own(connection, self.study, self.generation)
            self._mark(self.generation)

    def send(self, folders: Iterable[Folder] = ()) -> None:
        """Copy what is new of these runs and of the study, at once or not at all. A file that cannot be read counts as
        down: trying again later may work, and nobody's thread ends with it."""
        try:
            self._send([folder for folder in folders if folder != folder.study])
        except OSError as error:
            raise TrackingDown(f"{error.filename or self.path}: {error.strerror or error}") from error

    def _send(self, runs: Sequence[Folder]) -> None:
        for i in range(0, max(1, len(runs)), BATCH):
            names = [run.path.relative_to(self.path).as_posix() for run in runs[i : i + BATCH]]
            files = [f"{name}/{file}" for name in names for file in (SPEC, SPOOL, SHIPPED)]
            with self._session() as connection:
                sender = self._sender = self._sender or Sender(self.study, self.path, listed(connection, self.study))
                with connection.transaction():
                    hold.fence(connection, self.study, self.generation)
                    every = [STUDY, SPOOL, *files, JOURNAL]  # the journal last
                    done = sender.send(connection, every, heard=self._watch.heard)
                sender.note(done)

    def unsent(self) -> list[Folder]:
        """The runs of which the copy has not everything."""
        assert self._sender
        return [Folder((self.path / file).parent) for file in self._sender.grown()]

    def fence(self, study: str, generation: int) -> None:
        """Raises StudyLost if a study (one that was put aside, say) is not under this generation any more."""
        with self._session() as connection:
            hold.fence(connection, study, generation)

    def close(self) -> None:
        """Give the study up. A thread that hangs on the server is not waited for: its session ends with the process."""
        if self._using.acquire(timeout=0.1):
            self._hang_up()
            self._using.release()

    @contextmanager
    def _session(self, seconds: float | None = None) -> Iterator["Connection"]:
        """The session that holds the study, made again if it was lost; an answer may take `seconds`."""
        seconds = seconds or ANSWER
        with self._using, self._answered(seconds):
            anew = self._connection is None
            connection = self._connection or self._connect()
            with self._watch.at_most(seconds):
                if anew:
                    hold.retake(connection, self.study, self.generation)
                yield connection

    @contextmanager
    def _answered(self, seconds: float) -> Iterator[None]:
        """What goes wrong ends the session, but for what is wrong with a file here: that must not cost us the hold.
        That nobody answered in time is said so."""
        with translated(self.place):
            try:
                yield
            except Exception as error:
                silent = self._watch.fired
                if silent or not isinstance(error, OSError | Unlike):
                    self._hang_up()
                if silent:
                    raise TrackingDown(f"{KEY}: {self.place}: no answer for {seconds:g} s") from error
                raise

    def _connect(self) -> "Connection":
        connection, self._watch = connect(self.address), Watch()
        try:
            self._watch.add(connection)
        except OSError:  # too many open files: what is not watched is not used
            connection.close()
            raise
        self._connection = connection
        return connection

    def _mark(self, generation: int) -> None:
        write_json(self.path / MARK, {"place": self.place, "generation": generation})

    def _hang_up(self) -> None:
        self._watch.close()
        self._watch = Watch()
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def mark_of(study: Path) -> dict | None:
    """What is known here of a study folder's copy: place and generation. None if it is not shared."""
    return read_json(study / MARK)
