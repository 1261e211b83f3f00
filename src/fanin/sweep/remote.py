"""A worker on a machine that shares nothing with the coordinator's: the same handler as in a process here, on a
thread of its own, with a folder of its own for each run.

What a run writes there (records, checkpoint, artifacts) travels to the coordinator with every message, and is
written into the run's real folder by a Mirror: the spool, the display, pruning and resuming work as they do
locally. A run that is gone on with elsewhere is sent its spool and its checkpoint.
"""

import os
import pkgutil
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanin.spool import Spool
from fanin.sweep.channel import describe_failure

SPOOL, ARTIFACTS = "spool.jsonl", "artifacts"
UNFINISHED = (".partial", ".tmp")  # what is being written; it gets its name when it is whole
Files = dict[str, bytes]  # path within the run's folder -> content; of the spool: what is new at its end
Message = tuple[str, Any, Files]


class Remote:
    """Serves the coordinator's calls, which may come from several threads and so in another order than they were
    made: what is to be done has a number, and a `stop` is of that one task. `task` as for a Pool."""

    def __init__(self, task: str, arguments: Mapping[str, Any]) -> None:
        self._number, self._stop = 0, (0, "")
        self._numbers = threading.Lock()
        self._work: queue.SimpleQueue[tuple[str, Any, Files]] = queue.SimpleQueue()
        self._channel = RemoteChannel()
        threading.Thread(target=self._serve, args=(task, arguments), daemon=True).start()

    def do(self, number: int, kind: str, payload: Any, files: Files, dataset: Any = None) -> None:
        """Begin a task; `files` are those of the run's folder, `dataset` what it is trained on."""
        with self._numbers:
            self._number = number
            stopped, reason = self._stop
            self._channel.stopped = reason if stopped == number else None
        if dataset is not None:
            payload = payload | {"dataset": dataset}
        self._work.put((kind, payload, files))

    def reply(self, value: Any) -> None:
        self._channel.replies.put(value)

    def stop(self, number: int, reason: str) -> None:
        with self._numbers:
            self._stop = number, reason
            if number == self._number:
                self._channel.stopped = reason

    def hear(self, timeout: float) -> list[Message]:
        """What there is to say, as soon as there is something; nothing after `timeout` seconds."""
        messages: list[Message] = []
        try:
            messages.append(self._channel.messages.get(timeout=timeout))
            while True:
                messages.append(self._channel.messages.get_nowait())
        except queue.Empty:
            return messages

    def _serve(self, task: str, arguments: Mapping[str, Any]) -> None:
        """One thread makes the handler and does all the work: torch's settings belong to a thread."""
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # where the user's own modules are
        handler: Any = None
        while True:
            kind, payload, files = self._work.get()
            with self._channel.mirrored(payload, files) as here:
                try:
                    handler = handler or pkgutil.resolve_name(task)(**arguments)
                    answer = "done", handler(kind, here, self._channel)
                except BaseException as error:  # whatever it is: the coordinator must hear of it
                    answer = "failed", describe_failure(error)
                self._channel.send(*answer)


@dataclass
class RemoteChannel:
    """As channel.Channel, to a coordinator that asks for the messages."""

    stopped: str | None = None
    messages: "queue.SimpleQueue[Message]" = field(default_factory=queue.SimpleQueue)
    replies: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    _scratch: "Scratch | None" = None

    def send(self, kind: str, payload: Any = None) -> None:
        self.messages.put((kind, payload, self._scratch.news() if self._scratch else {}))

    def ask(self, kind: str, payload: Any = None) -> Any:
        self.send(kind, payload)
        return self.replies.get()

    @contextmanager
    def mirrored(self, payload: Any, files: Files) -> Iterator[Any]:
        """The payload of a run with its folder replaced by one on this machine, for the time of the run."""
        if not (isinstance(payload, Mapping) and "folder" in payload):
            yield payload
            return
        folder = Path(tempfile.mkdtemp(prefix="fanin-run-"))
        try:
            self._scratch = Scratch(folder, files)
            yield {**payload, "folder": str(folder)}
        finally:
            self._scratch = None
            shutil.rmtree(folder, ignore_errors=True)


class Scratch:
    """A run's folder on the worker's machine, and what of it the coordinator has."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder = folder
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self._known = {name: self._state(folder / name) for name in files}
        self._sent = len(files.get(SPOOL, b""))

    def news(self) -> Files:
        """What is new or changed: the whole file, of the spool only what was added."""
        found: Files = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or any(part.endswith(UNFINISHED) for part in path.relative_to(self.folder).parts):
                continue
            state = self._state(path)
            if self._known.get(name) != state:
                self._known[name] = state
                found[name] = self._added() if name == SPOOL else path.read_bytes()
        return found

    def _added(self) -> bytes:
        with (self.folder / SPOOL).open("rb") as file:
            file.seek(self._sent)
            added = file.read()
        self._sent += len(added)
        return added

    def _state(self, path: Path) -> tuple[int, int, int]:
        seen = path.stat()
        return seen.st_ino, seen.st_mtime_ns, seen.st_size


class Mirror:
    """The coordinator's side: keeps a run's real folder as its worker has it. Its spool is open, and so locked,
    until `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spool = Spool(folder / SPOOL)

    def files(self) -> Files:
        """What another worker needs in order to go on with the run."""
        paths = [self.folder / name for name in (SPOOL, "checkpoint.pt")]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def apply(self, files: Files) -> None:
        """Artifacts first, since the end record in the spool announces them; a checkpoint last, since one that
        is ahead of the records would leave a gap in them. Raises OSError if the disk is full."""
        if any(name.startswith(f"{ARTIFACTS}/") for name in files):  # they come together, once an attempt
            shutil.rmtree(self.folder / ARTIFACTS, ignore_errors=True)
        names = sorted(files, key=lambda name: 0 if name.startswith(ARTIFACTS) else 1 if name == SPOOL else 2)
        for name in names:
            if name == SPOOL:
                self._spool.add(files[name])
                continue
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(files[name])
            os.replace(partial, path)

    def close(self) -> None:
        self._spool.close()
