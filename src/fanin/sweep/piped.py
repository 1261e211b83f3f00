"""The coordinator's handle of a worker at the other end of a connection: a process here, a job elsewhere."""

import contextlib
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any


@dataclass(eq=False, kw_only=True)
class Piped:
    """`task` is what it works on, for the coordinator's own use; `heard` when it last said something (monotonic
    seconds); `ended` the cause to name if we end it ourselves. It cannot be talked to before it has a
    `connection`."""

    slot: int
    connection: Connection | None = None
    task: Any = None
    heard: float = field(default_factory=time.monotonic)
    ended: str | None = None

    @property
    def free(self) -> bool:
        return self.task is None

    def do(self, kind: str, payload: Any, *, task: Any) -> None:
        self.task, self.heard = task, time.monotonic()
        self._send(("do", kind, payload))

    def reply(self, value: Any) -> None:
        self._send(("reply", value))

    def stop(self, reason: str) -> None:
        self._send(("stop", reason))

    def leave(self) -> None:
        self._send(("leave",))

    def _send(self, message: tuple[Any, ...]) -> None:
        if self.connection:
            with contextlib.suppress(OSError):  # it died: whoever watches it will tell
                self.connection.send(message)
