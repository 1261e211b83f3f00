"""Worker processes on this machine: cheap to start, watched, and unable to outlive their coordinator.

A fork server that has imported the task's module (torch included) gives a new worker in about 10 ms. A worker
talks to the coordinator over one pipe; whatever kills either side closes it:

    coordinator -> worker   ("do", kind, payload)   ("reply", value)   ("stop", reason)   ("leave",)
    worker -> coordinator   ("record", payload)     ("done", result)   ("failed", Failure)

The same protocol serves training runs, the check of planned configurations, and functions of foreign Hydra apps.
"""

import multiprocessing
import os
import pkgutil
import queue
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from fanin.errors import ConfigError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Stopped(BaseException):
    """Raised inside a worker's task when the coordinator asks it to stop; not an Exception, so that no
    `except Exception` of a model or a data set swallows it."""


@dataclass(frozen=True)
class Failure:
    """Why a task raised: `user` marks bad input (a ConfigError), `memory` an exhausted memory."""

    message: str
    traceback: str
    user: bool
    memory: bool


@dataclass(frozen=True)
class Event:
    """What a worker said (`kind` record, done or failed) or suffered (died). `payload` as in the protocol;
    for died: the cause in words."""

    worker: "Worker"
    kind: str
    payload: Any


@dataclass(eq=False)
class Worker:
    """The coordinator's handle of one worker process."""

    slot: int
    process: Any
    connection: Connection
    task: Any = None  # what it works on, for the coordinator's own use
    heard: float = field(default_factory=time.monotonic)
    ended: str | None = None  # set when we end it ourselves: the cause to name

    @property
    def free(self) -> bool:
        return self.task is None

    def do(self, kind: str, payload: Any, *, task: Any) -> None:
        self.task, self.heard = task, time.monotonic()
        self.connection.send(("do", kind, payload))

    def reply(self, value: Any) -> None:
        self._send(("reply", value))

    def stop(self, reason: str) -> None:
        self._send(("stop", reason))

    def kill(self, cause: str) -> None:
        self.ended = cause
        self.process.kill()

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self.connection.send(message)
        except OSError:
            pass  # it died: its sentinel will tell


class Pool:
    """`size` workers, restarted when they die. `task` is the dotted path of a callable that makes the worker's
    handler, `handler(kind, payload, channel)`; `environments` gives each slot its own variables (devices)."""

    def __init__(
        self,
        task: str,
        *,
        arguments: Mapping[str, Any],
        size: int,
        threads: int,
        environments: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.task, self.arguments, self.size = task, dict(arguments), size
        self.environments = list(environments) or [{}]
        self.workers: list[Worker] = []
        self._context = warm_up(task.partition(":")[0], threads=threads)

    def fill(self, wanted: int) -> None:
        """Have at least min(`wanted`, size) workers."""
        taken = {worker.slot for worker in self.workers}
        for slot in [s for s in range(self.size) if s not in taken][
            : max(0, min(wanted, self.size) - len(taken))
        ]:
            self.workers.append(self._start(slot))

    def free(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.free]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.free]

    def wait(self, timeout: float) -> list[Event]:
        """Events of the next `timeout` seconds, at once when there are any."""
        sources = {worker.connection: worker for worker in self.workers}
        sources |= {worker.process.sentinel: worker for worker in self.workers}
        ready = {id(sources[s]): sources[s] for s in wait(list(sources), timeout)}
        events = []
        for worker in sorted(ready.values(), key=lambda w: w.slot):
            events += list(self._collect(worker))
        return events

    def close(self, grace: float = 5.0) -> None:
        """End all workers: those that do not leave within `grace` seconds are killed."""
        for worker in self.workers:
            worker._send(("leave",))
        deadline = time.monotonic() + grace
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self.workers.clear()

    def _start(self, slot: int) -> Worker:
        ours, theirs = self._context.Pipe()
        environment = dict(self.environments[slot % len(self.environments)])
        process = self._context.Process(
            target=_serve,
            args=(theirs, self.task, self.arguments, environment),
            name=f"fanin-worker-{slot}",
            daemon=True,
        )
        with _no_main_module():
            process.start()
        theirs.close()
        return Worker(slot=slot, process=process, connection=ours)

    def _collect(self, worker: Worker) -> Iterator[Event]:
        dead = worker.process.exitcode is not None
        while worker.connection.poll():
            try:
                kind, payload = worker.connection.recv()
            except (EOFError, OSError):
                dead = True
                break
            worker.heard = time.monotonic()
            yield Event(worker, kind, payload)
        if dead:
            worker.process.join(timeout=2)
            self.workers.remove(worker)
            worker.connection.close()
            yield Event(worker, "died", worker.ended or cause_of_death(worker.process.exitcode))


def cause_of_death(exitcode: int | None) -> str:
    """An exit code in words: signals by name, with their usual reason."""
    if exitcode is None or exitcode == 255:
        return "vanished together with its fork server"
    if exitcode >= 0:
        return f"left with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    reasons = {
        "SIGKILL": " (out of memory, or killed by hand)",
        "SIGSEGV": " (crash in native code)",
        "SIGABRT": " (crash in native code)",
        "SIGBUS": " (crash in native code, or no space left for shared memory)",
        "SIGILL": " (a processor instruction this machine lacks)",
        "SIGFPE": " (arithmetic crash in native code)",
    }
    return f"killed by {name}{reasons.get(name, '')}"


def warm_up(module: str, *, threads: int) -> Any:
    """Start the fork server in the background, with `module` imported and `threads` per worker; returns its
    multiprocessing context. Idempotent; the first call decides the module."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    from multiprocessing import forkserver

    with _no_main_module():
        forkserver.ensure_running()
    return context


@contextmanager
def _no_main_module() -> Iterator[None]:
    """A worker must not import the program's main module again: it costs time, and a script without an
    `if __name__ == "__main__"` guard would run in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---- inside the worker ----


class Channel:
    """A worker's end of the pipe. A thread reads it, so that a stop reaches a task in the middle of an epoch,
    and so that a worker whose coordinator is gone ends at once instead of training on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._work: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop: str | None = None
        self._busy = False
        signal.signal(signal.SIGUSR1, self._raise_stopped)
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._read, daemon=True, name="fanin-channel").start()

    def send(self, kind: str, payload: Any = None) -> None:
        self._connection.send((kind, payload))

    def ask(self, kind: str, payload: Any = None) -> Any:
        """Send, and wait for the coordinator's reply."""
        self.send(kind, payload)
        return self._replies.get()

    def next(self) -> tuple[Any, ...]:
        return self._work.get()

    @property
    def stopped(self) -> str | None:
        """Why the current task was asked to stop, if it was."""
        return self._stop

    @contextmanager
    def working(self) -> Iterator[None]:
        """While inside, a stop raises Stopped."""
        self._stop, self._busy = None, True
        try:
            yield
        finally:
            self._busy = False

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(3)  # the coordinator is gone; what is recorded is on disk
            if message[0] == "stop":
                self._stop = message[1]
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            elif message[0] == "reply":
                self._replies.put(message[1])
            else:
                self._work.put(message)

    def _raise_stopped(self, *_: Any) -> None:
        if self._busy and self._stop is not None:
            self._busy = False  # once: the task's own cleaning up must not be interrupted again
            raise Stopped(self._stop)

    def _terminated(self, *_: Any) -> None:
        if not self._busy:
            os._exit(0)
        self._stop = "worker was terminated (SIGTERM)"
        self._raise_stopped()


def _serve(
    connection: Connection, task: str, arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator decides
    os.environ.update(environment)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own models and data sets live in the project folder
    channel = Channel(connection)
    try:
        handler = pkgutil.resolve_name(task)(**arguments)
    except Exception as error:  # reported to the coordinator, which ends the sweep with it
        channel.send("failed", _failure(error))
        raise SystemExit(4) from error
    while (message := channel.next())[0] != "leave":
        _work(handler, channel, kind=message[1], payload=message[2])


def _work(handler: Callable[..., Any], channel: Channel, *, kind: str, payload: Any) -> None:
    try:
        with channel.working():
            result = handler(kind, payload, channel)
    except Stopped as stopped:
        channel.send("done", {"stopped": str(stopped)})
    except Exception as error:
        # Library code cut short by Stopped may answer with an error of its own while it unwinds.
        channel.send("done", {"stopped": channel.stopped}) if channel.stopped else channel.send(
            "failed", _failure(error)
        )
    else:
        channel.send("done", result)


def _failure(error: Exception) -> Failure:
    memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    text = str(error) or type(error).__name__
    message = text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
    return Failure(
        message=message,
        traceback="".join(traceback.format_exception(error)),
        user=isinstance(error, ConfigError),
        memory=memory,
    )
