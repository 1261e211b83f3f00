"""A thread that ships spools while others train. Nobody but this thread ever waits for the tracking store."""

import threading
import time
from pathlib import Path

from fanin.folders import Folder
from fanin.shipping import Guard, ship, unshipped
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

# s until a run's first batch, and between its first two; doubled after each, up to the longest. A batch costs
# the store much the same whatever its size, so a short run is shipped in one.
INTERVAL, LONGEST_INTERVAL = 1.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # s until the next try of a store that is down; doubled each time


class Shipper:
    """Ships folders in the background; nothing it meets is raised into the caller, and nothing is lost.

    A store that is down is tried again with growing pauses; a folder that it refuses (a deleted run, an
    expired password) only when it is nudged again, and once more on closing.
    """

    def __init__(self, tracker: Tracker, *, interval: float = INTERVAL, guard: Guard | None = None):
        self._tracker, self._guard = tracker, guard
        self._interval = interval
        self._due: dict[Path, float] = {}  # folder -> when to ship it, monotonic seconds
        self._earliest: dict[Path, float] = {}  # folder -> when it may be due again
        self._intervals: dict[Path, float] = {}  # folder -> s until it may be due after the next batch
        self._refused: dict[Path, str] = {}  # folder -> why
        self._busy: Path | None = None  # what is being shipped right now
        self._down = ""  # why the store cannot be reached
        self._pause, self._resume = FIRST_PAUSE, 0.0
        self._closing = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="shipper", daemon=True)
        self._thread.start()

    def nudge(self, folder: Folder, *, ended: bool = False) -> None:
        """Say that the folder's spool has grown. Cheap: call it after every record. What has ended is shipped
        at once: there is nothing more to wait for."""
        if ended and self._guard:
            self._guard.note(folder)
        with self._changed:
            earliest = self._earliest.setdefault(folder.path, time.monotonic() + self._interval)
            self._due[folder.path] = 0.0 if ended else self._due.get(folder.path, earliest)
            self._changed.notify()

    def catch_up(self, study: Folder) -> None:
        """Ship what earlier sessions left in the spools of a study, the study first. Not at once: importing
        MLflow would slow the first epoch."""
        for folder in unshipped(study, uri=self._tracker.address):
            self.nudge(folder)

    @property
    def status(self) -> str:
        """One line for the user; empty while all is well."""
        with self._changed:
            if self._down:
                pause = max(0.0, self._resume - time.monotonic())
                return f"tracking is down, {len(self._due)} wait, next try in {pause:.0f} s: {self._down}"
            if self._refused:
                return f"tracking refused {len(self._refused)}: {next(iter(self._refused.values()))}"
            if not self._thread.is_alive() and not self._closing:
                return "tracking stopped by a fault of its own; `fanin sync` ships what is left"
            return ""

    def close(self, timeout: float) -> list[Folder]:
        """Ship what is waiting, for at most `timeout` seconds; the folders that are not fully shipped.

        Those are safe in their spools, and `fanin sync` ships them later.
        """
        with self._changed:
            self._closing = True
            self._due = dict.fromkeys(self._due, 0.0)
            self._pause, self._resume = FIRST_PAUSE, 0.0
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            left = {*self._due, *self._refused} | ({self._busy} if self._busy else set())
            self._closed = True  # the thread ends as soon as it is back from the store
            self._due.clear()
            self._changed.notify()
        return [Folder(path) for path in sorted(left)]

    def _work(self) -> None:
        while path := self._wait():
            try:
                ship(Folder(path), tracker=self._tracker, guard=self._guard, forgot=self.catch_up)
            except TrackingDown as error:
                self._postpone(path, str(error))
            except TrackingRefused as error:
                self._settle(path, refused=str(error))
            else:
                self._settle(path)
        self._tracker.settle()

    def _wait(self) -> Path | None:
        """The next folder to ship, when its time has come; None when closing and all is done."""
        with self._changed:
            while self._due or not self._closing:
                path = min(self._due, key=self._due.__getitem__, default=None)
                wait = max(self._due[path], self._resume) - time.monotonic() if path else None
                if path and wait is not None and wait <= 0:
                    del self._due[path]
                    self._busy = path
                    return path
                self._changed.wait(wait)
            return None

    def _postpone(self, path: Path, reason: str) -> None:
        with self._changed:
            self._busy, self._down = None, reason
            if not self._closed:
                self._due.setdefault(path, 0.0)
            self._resume = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _settle(self, path: Path, *, refused: str = "") -> None:
        with self._changed:
            self._busy, self._down = None, ""
            self._pause, self._resume = FIRST_PAUSE, 0.0
            interval = self._intervals.get(path, self._interval)
            self._intervals[path] = min(2 * interval, max(self._interval, LONGEST_INTERVAL))
            self._earliest[path] = time.monotonic() + (LONGEST_PAUSE if refused else interval)
            self._refused.pop(path, None)
            if refused:
                self._refused[path] = refused
