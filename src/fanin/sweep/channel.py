"""A worker's side of the pipe to its coordinator (workers.py has the other, and the protocol).

A stop is a request. A task looks at `stopped` where it can end cleanly, between two epochs; one that does not
in time is killed, which everything here must survive anyway. Nothing is raised into the middle of a write.
"""

import io
import os
import pkgutil
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from fanin.blame import describe
from fanin.errors import ConfigError

LONGEST_TRACEBACK = 8000  # characters
SHIELDED = (
    signal.SIGINT,
    signal.SIGTERM,
)  # blocked in the fork server, and in a worker until it can hear them


class Stopped(BaseException):
    """Raised by a stop inside `Channel.interruptible`; not an Exception, so that no `except Exception` of the
    code it cuts short swallows it."""


@dataclass(frozen=True)
class Failure:
    """Why a task raised: `user` marks bad input (a ConfigError), `memory` an exhausted memory."""

    message: str
    traceback: str
    user: bool
    memory: bool


class Channel:
    """A thread reads the pipe, so that a stop is seen in the middle of a task, and so that a worker whose
    coordinator is gone ends at once instead of training on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._work: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop: str | None = None
        self._idle = self._interruptible = False
        self.terminated = False  # SIGTERM came: this worker leaves as soon as its task allows
        signal.signal(signal.SIGUSR1, self._interrupt)
        signal.signal(signal.SIGTERM, self._terminate)
        threading.Thread(target=self._read, daemon=True, name="fanin-channel").start()

    def send(self, kind: str, payload: Any = None) -> None:
        self._connection.send((kind, payload))

    def ask(self, kind: str, payload: Any = None) -> Any:
        """Send, and wait for the coordinator's reply."""
        self.send(kind, payload)
        return self._replies.get()

    def next(self) -> tuple[Any, ...]:
        """What to do next; waits for it."""
        self._idle = True
        if self.terminated:  # SIGTERM came between the last answer and here
            end_terminated()
        message = self._work.get()
        self._idle = False
        return message

    @property
    def stopped(self) -> str | None:
        """Why the current task is asked to stop, if it is."""
        return "interrupted: its worker was terminated" if self.terminated else self._stop

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around code of others that never looks at `stopped`: in there, a stop raises Stopped."""
        self._interruptible = True
        try:
            self._interrupt()
            yield
        finally:
            self._interruptible = False

    def _read(self) -> None:
        try:
            while True:
                self._hear(*self._connection.recv())
        except (EOFError, OSError):
            pass  # the coordinator is gone; what is recorded is on disk
        finally:
            os._exit(3)  # whatever it was: a worker that cannot hear must not go on

    def _hear(self, kind: str, *rest: Any) -> None:
        if kind == "stop":
            self._stop = rest[0]
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        elif kind == "reply":
            self._replies.put(rest[0])
        else:
            self._stop = None
            self._work.put((kind, *rest))

    def _interrupt(self, *_: Any) -> None:
        if self._interruptible and self.stopped:
            self._interruptible = False  # once: the task's own cleaning up must not be cut short again
            raise Stopped(self.stopped)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True
        if self._idle:
            end_terminated()
        self._interrupt()


def end_terminated() -> None:
    """End as a process without a handler for SIGTERM would, so that whoever waits for it sees the cause."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def serve(connection: Connection, task: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """The life of a worker: make the handler that `task` names, and do what the coordinator asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator decides
    channel = Channel(connection)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):  # what a task prints is seen at once, and no line is torn by another's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own models and data sets live in the project folder
    try:
        handler = pkgutil.resolve_name(task)(**arguments)
    except Exception as error:  # reported to the coordinator, which ends the sweep with it
        channel.send("failed", describe_failure(error))
        raise SystemExit(4) from error
    while (message := channel.next())[0] != "leave":
        answer = _work(handler, channel, kind=message[1], payload=message[2])
        if channel.terminated:
            end_terminated()
        channel.send(*answer)


def _work(handler: Callable[..., Any], channel: Channel, *, kind: str, payload: Any) -> tuple[str, Any]:
    try:
        return "done", handler(kind, payload, channel)
    except Stopped:
        return "done", None
    except Exception as error:
        return "failed", describe_failure(error)


def describe_failure(error: BaseException) -> Failure:
    memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    message = str(error) if isinstance(error, ConfigError) else describe(error)
    return Failure(
        message=message,
        traceback="".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:],
        user=isinstance(error, ConfigError),
        memory=memory,
    )
