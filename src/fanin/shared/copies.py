"""Files of a study's folder in pieces of a table: appended to as the files grow, and fetched where they are missing.

Spools and journals are append-only, but for what repairing cuts off their ends. Of the copies and the file here, the
copy wins unless the file begins with all of it: then the file has more, and only that is sent.

No statement carries much at once, so that a slow line has an answer for each in time; `heard` is called after it.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin.folders import write_whole
from fanin.spool import Spool
from fanin.tracking import TrackingRefused

if TYPE_CHECKING:
    from psycopg import Connection

STUDY, JOURNAL, SPOOL = "study.json", "journal.log", "spool.jsonl"
SPEC, SHIPPED = "run.json", "shipped.json"
GROWING = (JOURNAL, SPOOL)  # the others are written anew as a whole
PIECE = 1 << 18  # bytes sent by one statement, if a line is no longer
AT_ONCE = 1 << 20  # bytes of runs fetched by one query, if one run has no more
THERE = """
select file, sum(length(data)), md5(string_agg(data, ''::bytea order by start)) from fanin_piece
where study = %s group by file
"""
GET = "select file, data from fanin_piece where study = %s and file = any(%s) order by file, start"
# A piece that came through, but whose reply was lost, is sent again, maybe longer.
PUT = """
insert into fanin_piece (study, file, start, data) values (%s, %s, %s, %s)
on conflict (study, file, start) do update set data = excluded.data
"""
DROP = "delete from fanin_piece where study = %s and file = %s"


class Unlike(TrackingRefused):
    """The copy has other records than this folder, although nobody else owned the study since."""


@dataclass(frozen=True)
class Copy:
    length: int  # bytes
    digest: str  # MD5


def listed(connection: "Connection", study: str) -> dict[str, Copy]:
    """The copies that there are, by file."""
    return {file: Copy(int(length), digest) for file, length, digest in connection.execute(THERE, [study])}


def begins_with(path: Path, copy: Copy) -> bool:
    """Whether the file begins with all that its copy has."""
    try:
        with path.open("rb") as file:
            beginning = file.read(copy.length)
    except FileNotFoundError:
        return False
    return len(beginning) == copy.length and hashlib.md5(beginning, usedforsecurity=False).hexdigest() == copy.digest


def fetch(
    connection: "Connection",
    study: str,
    there: Mapping[str, Copy],
    *,
    folder: Path,
    spool: Spool,
    heard: Callable[[], None] = lambda: None,
) -> list[str]:
    """Bring the folder up to its copies; `spool` is the study's own, open. Returns the keys of the runs that came."""
    wrong = [file for file, copy in there.items() if _differs(folder / file, copy)]
    keys = sorted({Path(file).parts[1] for file in wrong if file.startswith("runs/") and file.endswith(SPOOL)})
    for some in _groups(keys, there):
        found = _read(connection, study, [file for key in some for file in _files(key)])
        heard()
        for key in some:
            _place(folder, key, found)
    for file in [file for file in wrong if "/" not in file]:
        content = _read(connection, study, [file])[file]
        heard()
        if file == SPOOL:
            spool.rewrite(content)
        else:
            write_whole(folder / file, content)
    return keys


def _files(key: str) -> list[str]:
    return [f"runs/{key}/{name}" for name in (SPEC, SHIPPED, SPOOL)]


def _groups(keys: Iterable[str], there: Mapping[str, Copy]) -> Iterator[list[str]]:
    """Runs that are fetched together."""
    some: list[str] = []
    size = 0
    for key in keys:
        length = sum(there[file].length for file in _files(key) if file in there)
        if some and size + length > AT_ONCE:
            yield some
            some, size = [], 0
        some.append(key)
        size += length
    if some:
        yield some


def _differs(path: Path, copy: Copy) -> bool:
    if path.name == SHIPPED and path.exists():
        return False  # what is believed to be missing in MLflow is sent again, and does no harm
    return not begins_with(path, copy) or (path.name not in GROWING and path.stat().st_size != copy.length)


def _read(connection: "Connection", study: str, files: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file, data in connection.execute(GET, [study, files], binary=True) if files else ():  # half of it as text
        found[file] = found.get(file, b"") + data
    return found


def _place(folder: Path, key: str, found: Mapping[str, bytes]) -> None:
    """The run's folder anew: a checkpoint or artifacts that are there are of another attempt."""
    draft, target = folder / "fetched", folder / "runs" / key
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name in (SPEC, SHIPPED, SPOOL):
        if (content := found.get(f"runs/{key}/{name}")) is not None:
            (draft / name).write_bytes(content)
    if target.exists():
        shutil.rmtree(target)
    os.replace(draft, target)


@dataclass
class Sender:
    """Knows how much of each file the copies have. Raises Unlike for a file of which it has something else."""

    study: str
    folder: Path
    there: Mapping[str, Copy]  # when it was made
    rewritten: tuple[str, ...] = ()  # files that may have been cut or written anew here since they were fetched
    _sent: dict[str, Any] = field(default_factory=dict)  # file -> bytes, or the content of one that is replaced

    def send(
        self, connection: "Connection", files: Iterable[str], *, heard: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Write what is new of these files, in the caller's transaction; what to `note` when it is committed."""
        done: dict[str, Any] = {}
        for file in files:
            if Path(file).name in GROWING:
                done |= self._append(connection, file, heard)
            else:
                done |= self._replace(connection, file)
            heard()
        return done

    def note(self, done: Mapping[str, Any]) -> None:
        self._sent |= done

    def grown(self) -> list[str]:
        """The runs' spools of which something was not sent yet; reads sizes only."""
        return [
            name
            for path in sorted(self.folder.glob(f"runs/*/{SPOOL}"))
            if path.stat().st_size != self._length(name := path.relative_to(self.folder).as_posix())
        ]

    def _length(self, file: str) -> int:
        copy = self.there.get(file)
        return int(self._sent.get(file, copy.length if copy else 0))

    def _append(self, connection: "Connection", file: str, heard: Callable[[], None]) -> dict[str, int]:
        start = self._sent.get(file)
        if start is None:
            copy = self.there.get(file)
            start = copy.length if copy and begins_with(self.folder / file, copy) else 0
            if copy and not start:
                if file not in self.rewritten:
                    raise Unlike(f"{file}: PostgreSQL has other records than this folder, of the same owner")
                connection.execute(DROP, [self.study, file])
        for piece in _pieces(_whole_lines(self.folder / file, start)):
            connection.execute(PUT, [self.study, file, start, piece])
            heard()
            start += len(piece)
        return {file: start}

    def _replace(self, connection: "Connection", file: str) -> dict[str, bytes]:
        try:
            content = (self.folder / file).read_bytes()
        except FileNotFoundError:
            return {}
        if self._sent.get(file) != content:
            connection.execute(DROP, [self.study, file])
            connection.execute(PUT, [self.study, file, 0, content])
        return {file: content}


def _whole_lines(path: Path, start: int) -> bytes:
    """What the file has from `start` on, up to the last line that is whole."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _pieces(lines: bytes) -> Iterator[bytes]:
    """Whole lines in pieces. Where one ends does not depend on what is appended later, but for the last: pieces that
    are sent again, longer together, are the same or go on from the last one."""
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + PIECE) + 1 or lines.find(b"\n", start) + 1
        yield lines[start:end]
        start = end
