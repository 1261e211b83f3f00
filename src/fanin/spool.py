"""The durable record of a run: append-only JSON lines with checksums, which outlive kill -9.

A record is one write() to a file opened for appending, so it reaches the operating system whole or, at
worst, as a torn last line, which the next opening cuts off. An "end" record is fsynced. The open spool holds
a lock on its file: two processes can never write one run, and a run whose spool is unlocked has no living
process.

Kinds: "start" (attempt, pid, host), "pretrain" (number, step, metrics: what an initializer measured), "epoch"
(epoch, metrics), "end" (status, reason, metrics, step, ...); each has a "time" in unix milliseconds. Several
starts are several attempts; an end that a start follows is void.
"""

import json
import logging
import os
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

from fanin import lock

Record = dict
log = logging.getLogger(__name__)
SEAL = ',"crc":"%08x"}'  # closes the JSON object, over whose text before it the checksum goes
SEAL_LENGTH = len(SEAL % 0)
ONCE = {"pretrain": "number", "epoch": "epoch"}  # kinds of which each is written once, and what tells them apart
PIECE = 1 << 16  # bytes read at a time from the end of a file


class SpoolBusy(lock.Held):
    """A living process still writes this run."""


class Spool:
    """The spool of one run, open for writing by this process only.

    Raises SpoolBusy if another process still has it open `wait` seconds from now, OSError if the disk is full
    (the file then ends with the last whole record).
    """

    def __init__(self, path: str | Path, *, wait: float = 1.0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            lock.acquire(self._file, wait=wait)
        except lock.Held:
            os.close(self._file)
            raise SpoolBusy(f"{self.path}: still written by {_owner(read(self.path)[0])}") from None
        records, whole = read(self.path)
        self._cut_tail(whole)
        self._count(records)

    def append(self, kind: str, **fields: object) -> bool:
        """Add a record, stamped with the time. False (nothing written) for a point already there.

        A resumed run repeats epochs: the first record of a point is the one that counts, with its time.
        """
        identity = _identity(kind, fields)
        if kind in ONCE and identity in self._known:
            return False
        if kind == "start":
            self._attempts += 1
            fields = {"attempt": self._attempts, "pid": os.getpid(), "host": socket.gethostname()} | fields
        self._write(encode({"kind": kind, "time": int(time.time() * 1000)} | fields))
        self._known.add(identity)
        if kind == "end":
            self.sync()
        return True

    def add(self, lines: bytes) -> None:
        """Add whole records that another machine wrote. Raises OSError if the disk is full."""
        if lines:
            self._write(lines)
            self.sync()

    def rewrite(self, lines: bytes) -> None:
        """Have these whole records, from another machine, in the place of all there are."""
        os.ftruncate(self._file, 0)
        self.add(lines)
        self._count(read(self.path)[0])

    def sync(self) -> None:
        """Put what was appended on the disk: it then outlives a power failure, too."""
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, records: list[Record]) -> None:
        self._attempts = sum(record["kind"] == "start" for record in records)
        self._known = {_identity(record["kind"], record) for record in records}

    def _cut_tail(self, whole: int) -> None:
        torn = os.fstat(self._file).st_size - whole
        if torn:
            log.warning("%s: cut a torn record of %d bytes off its end", self.path, torn)
            os.ftruncate(self._file, whole)

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):  # a full disk takes what fits: leave no torn record behind
            os.ftruncate(self._file, size)
            raise OSError(ENOSPC, "no space left for the record of a run", str(self.path))


def bury(path: Path, *, reason: str, wait: float = 0.0) -> bool:
    """End a run that was begun and has no end, as KILLED, unless a living process still writes it. True if it
    did."""
    if last(path) in ("", "end"):
        return False
    try:
        with Spool(path, wait=wait) as run:
            return last(path) != "end" and run.append("end", status="KILLED", reason=reason, metrics={})
    except SpoolBusy:
        return False


def last(path: Path) -> str:
    """The kind of the last whole record; empty where there is none. Reads no more than it must."""
    try:
        with path.open("rb") as file:
            position = size = file.seek(0, os.SEEK_END)
            tail = b""
            while position and tail.count(b"\n") < 2:
                position = max(0, position - PIECE)
                file.seek(position)
                tail = file.read(size - position)
    except FileNotFoundError:
        return ""
    records = [record for line in tail.split(b"\n")[-3:-1] if (record := decode(line))]
    return records[-1]["kind"] if records else ""


def encode(record: Record) -> bytes:
    """One line of the spool. Floats keep all their digits; NaN and infinities are written as words."""
    text = json.dumps(record, separators=(",", ":"), default=float)[:-1]
    return (text + SEAL % zlib.crc32(text.encode()) + "\n").encode()


def decode(line: bytes) -> Record | None:
    """The record in a line (without its newline), or None if the line is not what `encode` wrote."""
    body, seal = line[:-SEAL_LENGTH], line[-SEAL_LENGTH:]
    if seal != (SEAL % zlib.crc32(body)).encode():
        return None
    return json.loads(body + b"}")


def read(path: str | Path, offset: int = 0) -> tuple[list[Record], int]:
    """The intact records from byte `offset` on, and the offset behind the last of them.

    Safe beside a living writer: a line still being written is left for the next call. An `offset` that lies
    on no line boundary (the file was cut or replaced since) reads from the beginning.
    """
    data, offset = _read_from(Path(path), offset)
    records: list[Record] = []
    for position, line in _lines(data, offset):
        record = decode(line)
        if record is None:
            log.warning("%s: skipped a damaged record at byte %d", path, position)
            continue
        records.append(record)
        offset = position + len(line) + 1
    return records, offset


@dataclass(frozen=True)
class Digest:
    """What a spool's records say as a whole."""

    attempts: int
    started: int | None  # unix ms of the first attempt
    epochs: tuple[Record, ...]  # in order, each epoch once
    end: Record | None  # None while an attempt is under way, or died without a word

    @property
    def last_epoch(self) -> int | None:
        return self.epochs[-1]["epoch"] if self.epochs else None

    @property
    def final(self) -> bool:
        """Nothing is left to do: finished (diverged included) or pruned; neither failed nor interrupted."""
        return self.end is not None and is_final(self.end["status"], self.end.get("reason"))


def is_final(status: str, reason: str | None) -> bool:
    """Whether a run that ended so has nothing left to do."""
    return status == "FINISHED" or is_pruned(status, reason)


def is_pruned(status: str, reason: str | None) -> bool:
    return status == "KILLED" and (reason or "").startswith("pruned")


def digest(records: Iterable[Record]) -> Digest:
    attempts, started, end = 0, None, None
    epochs: dict[int, Record] = {}
    for record in records:
        if record["kind"] == "epoch":
            epochs.setdefault(record["epoch"], record)
        elif record["kind"] == "end":
            end = record
        elif record["kind"] == "start":
            attempts, end = attempts + 1, None
            started = started or record["time"]
    return Digest(attempts, started, tuple(epochs[epoch] for epoch in sorted(epochs)), end)


def _read_from(path: Path, offset: int) -> tuple[bytes, int]:
    """(bytes, where they begin): from `offset`, or from 0 if no line begins there."""
    try:
        with path.open("rb") as file:
            file.seek(max(offset - 1, 0))
            if offset and file.read(1) != b"\n":
                file.seek(offset := 0)
            return file.read(), offset
    except FileNotFoundError:
        return b"", 0


def _lines(data: bytes, begin: int) -> Iterator[tuple[int, bytes]]:
    """(position in the file, line) of every line that is complete, that is, ends in a newline."""
    start = 0
    while (stop := data.find(b"\n", start)) >= 0:
        yield begin + start, data[start:stop]
        start = stop + 1


def _identity(kind: str, fields: Mapping[str, object]) -> tuple[str, object]:
    return kind, fields[ONCE[kind]] if kind in ONCE else None


def _owner(records: list[Record]) -> str:
    starts = [record for record in records if record["kind"] == "start"]
    return f"process {starts[-1]['pid']} on {starts[-1]['host']}" if starts else "another process"
