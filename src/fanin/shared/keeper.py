"""A thread that keeps a study's copy in PostgreSQL up to date while others train. Nobody waits for it but the shipper,
which must not tell MLflow what PostgreSQL does not know."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from fanin.folders import Folder
from fanin.shared.exchange import Exchange, mark_of
from fanin.shipping import StudyLost
from fanin.tracking import TrackingDown, TrackingRefused

log = logging.getLogger(__name__)

BEAT = 2.0  # s between two looks whether the study is still ours, and the pause after one that failed
GATHER = 0.3  # s in which what ends together is gathered, to be sent together


class Keeper:
    """Sends runs as they end, and notices when the study is not ours any more. `after` is called whenever something
    was sent, until it fails."""

    def __init__(self, exchange: Exchange, *, after: Callable[[], None] | None = None) -> None:
        self._exchange, self._after = exchange, after
        self._due: set[Path] = {folder.path for folder in exchange.unsent()}
        self._lost = ""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> str:
        """Who has the study now, in a sentence; empty while it is ours as far as we know."""
        return self._lost

    def note(self, folder: Folder) -> None:
        """Say that there is something new of a run. Cheap, from any thread."""
        if folder.study.path == self._exchange.path:
            with self._changed:
                self._due.add(folder.path)
                self._changed.notify()

    def secure(self, folder: Folder) -> None:
        """Return when PostgreSQL has all of the folder. Raises TrackingDown, or TrackingRefused (StudyLost)."""
        if folder.study.path == self._exchange.path:
            self._send({folder.path})
        elif mark := mark_of(folder.study.path):  # what was put aside when the study was begun anew
            self._exchange.fence(folder.study.path.name, mark["generation"])

    def close(self, timeout: float) -> bool:
        """Send what is left, for at most `timeout` seconds; False if it is still at it. `fanin sync` sends the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._due and not self._closing:
                    self._changed.wait(BEAT)
                closing, due = self._closing, set(self._due)
            try:
                self._send(due)
                self._follow()
            except (TrackingDown, TrackingRefused):
                pause = BEAT
            else:
                pause = GATHER
            with self._changed:
                self._changed.wait_for(lambda: self._closing, 0 if closing else pause)
            if closing or self._lost:
                return

    def _follow(self) -> None:
        if self._after is None:
            return
        try:
            self._after()
        except Exception as error:  # the copy does not depend on it, and must not end with it
            self._after = None
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning(
                "study %r is still copied to PostgreSQL, but shown nowhere else any more: %s",
                self._exchange.study,
                fault,
            )

    def _send(self, due: set[Path]) -> None:
        if self._lost:
            raise StudyLost(self._lost)
        with self._changed:
            self._due -= due
        try:
            self._exchange.send(map(Folder, sorted(due)))
        except StudyLost as error:
            self._lost = str(error)
            raise
        except (TrackingDown, TrackingRefused):
            with self._changed:
                self._due |= due
            raise
