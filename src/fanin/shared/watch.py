"""Ends database sessions that do not answer.

TCP notices by itself that the other machine is gone (connection.py says how soon). It does not where something between
still acknowledges what it is sent, as a tunnel or a proxy does whose own far end is cut off: there one waits for ever.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Session(Protocol):
    def fileno(self) -> int: ...


class Watch:
    """Of the sessions that were added, whose sockets it shuts when they are waited for longer than allowed: whoever
    waits then finds its session closed."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._heard = 0.0
        self.fired = False

    def add(self, session: Session) -> None:
        # a descriptor of its own: that of a session may be another file's by the time the watch fires
        self._sockets.append(socket.socket(fileno=os.dup(session.fileno())))

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """For one answer: with each that is `heard`, waiting begins anew."""
        done = threading.Event()
        self.heard()
        threading.Thread(target=self._wait, args=[seconds, done], daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def heard(self) -> None:
        """Say that there was an answer, and that the next one is waited for."""
        self._heard = time.monotonic()

    def close(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def _wait(self, seconds: float, done: threading.Event) -> None:
        while (left := self._heard + seconds - time.monotonic()) > 0:
            if done.wait(left):
                return
        self._fire()

    def _fire(self) -> None:
        self.fired = True
        for one in self._sockets:
            with suppress(OSError):  # closed meanwhile
                one.shutdown(socket.SHUT_RDWR)
