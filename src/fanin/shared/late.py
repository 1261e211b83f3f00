"""What `fanin sync` does about shared studies: it ships a folder only if nobody took its study over since."""

from contextlib import suppress
from pathlib import Path

from fanin.errors import ConfigError
from fanin.folders import Folder
from fanin.shared.exchange import Exchange, mark_of
from fanin.shared.glance import twin
from fanin.shipping import StudyBusy
from fanin.tracking import TrackingDown, TrackingRefused


class Latecomer:
    """The shared studies of a project, each held as its last sweep here held it. `address`: of the database, None if
    nobody has named it."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._exchanges: dict[Path, Exchange] = {}
        self._refused: dict[Path, TrackingRefused | StudyBusy] = {}
        self._shipped: dict[Path, list[Folder]] = {}

    def note(self, folder: Folder) -> None:
        self._shipped.setdefault(folder.study.path, []).append(folder)

    def secure(self, folder: Folder) -> None:
        """As a Keeper does; nothing for a study that is not shared. That PostgreSQL is down is TrackingRefused, too:
        MLflow may be up."""
        study = folder.study.path
        mark = mark_of(study)
        if mark is None:
            return
        if study in self._refused:
            raise self._refused[study]
        try:
            if study not in self._exchanges:
                self._exchanges[study] = self._reopen(study, mark)
            self._exchanges[study].send([folder])
        except (StudyBusy, TrackingRefused) as error:
            self._refused[study] = error
            raise
        except TrackingDown as error:
            self._refused[study] = TrackingRefused(str(error))
            raise self._refused[study] from error

    def twin(self, folder: Folder) -> str:
        """MLflow's id of a run that ended here, if the machine that took its study over has shipped it as it is here;
        else empty. Raises TrackingDown or TrackingRefused."""
        return twin(self._address, folder) if self._address and mark_of(folder.study.path) else ""

    def close(self) -> None:
        for study, exchange in self._exchanges.items():
            if study not in self._refused:
                with suppress(TrackingDown, TrackingRefused):  # else it is only shipped again
                    exchange.send(self._shipped.get(study, []))
            exchange.close()

    def _reopen(self, study: Path, mark: dict) -> Exchange:
        if not self._address:
            raise TrackingRefused(f"its state is in PostgreSQL at {mark['place']}: set FANIN_STATE_URI")
        try:
            exchange = Exchange(self._address, study)
            exchange.reopen(mark["generation"])
        except ConfigError as error:
            raise TrackingRefused(str(error)) from error
        return exchange
