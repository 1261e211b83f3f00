"""A search's trials in Optuna's own tables, for optuna-dashboard. Written there, never read back for the search.

The search itself lives in its journal (fanin.shared says why). A trial is written when its values are drawn, and
again with what it reported and how it ended, in the order of the numbers, so that both sides number them alike.
"""

import logging
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from fanin.shared.connection import ANSWER, SCHEME, connect
from fanin.shared.watch import Watch
from fanin.sweep.journal import ASKED
from fanin.sweep.search import GIVEN
from fanin.tracking import TrackingDown

log = logging.getLogger(__name__)

MARK = "fanin.mirror"  # on the study there: ours to write, and to make anew


class Mirror:
    """Of the `study` in the database at `address` (tracking.state)."""

    def __init__(self, study: optuna.Study, *, address: str) -> None:
        self._study, self._address = study, address
        self._url = SCHEME.sub("postgresql+psycopg://", address)
        self._storage: Any = None
        self._watch = Watch()
        self._there: list[FrozenTrial] = []  # the trials as we last wrote them
        self._id = -1
        self._off = False

    def update(self) -> None:
        """Write what is new. No sweep depends on it: after an outage, or when somebody removed the study there, all is
        written again; anything else is said once and left."""
        if self._off:
            return
        try:
            with self._watch.at_most(ANSWER):
                self._open()
                for trial in drawn(self._study.get_trials(deepcopy=False)):
                    self._write(trial)
                    self._watch.heard()
        except (TrackingDown, OperationalError, StorageInternalError, KeyError):  # KeyError: Optuna finds no such study
            self.close()
        except (SQLAlchemyError, RuntimeError) as error:
            self._off = True
            self.close()
            log.warning("optuna-dashboard will not show this search as it goes on: %s", str(error).splitlines()[0])

    def close(self) -> None:
        self._watch.close()
        self._watch = Watch()
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
            self._storage = None

    def _open(self) -> None:
        if self._storage is not None:
            return
        options = {"pool_size": 1, "max_overflow": 4, "creator": self._connect}
        self._storage = optuna.storages.RDBStorage(self._url, engine_kwargs=options)
        name = self._study.study_name
        known = {one.study_name: one for one in self._storage.get_all_studies()}
        if name in known:
            if MARK not in known[name].user_attrs:
                raise RuntimeError(f"a study {name!r} of somebody else's is in Optuna's tables")
            self._id = known[name]._study_id
            self._there = self._storage.get_all_trials(self._id, deepcopy=False)
            if all(_same(a, b) for a, b in zip(self._there, self._study.get_trials(deepcopy=False), strict=False)):
                return
            self._storage.delete_study(self._id)  # the study was begun anew or its space extended
        self._id = self._storage.create_new_study(self._study.directions, name)
        self._storage.set_study_user_attr(self._id, MARK, True)
        self._there = []

    def _connect(self) -> Any:
        connection = connect(self._address, autocommit=False)
        self._watch.add(connection)
        return connection

    def _write(self, trial: FrozenTrial) -> None:
        """Raises UpdateFinishedTrialError (a RuntimeError) if somebody else has ended it there."""
        if trial.number >= len(self._there):
            self._storage.create_new_trial(self._id, template_trial=trial)
            self._there.append(trial)
            return
        before = self._there[trial.number]
        if before is trial or before.state.is_finished():
            return
        number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        for step, value in trial.intermediate_values.items():
            if step not in before.intermediate_values:
                self._storage.set_trial_intermediate_value(number, step, value)
        for key, value in trial.user_attrs.items():
            if before.user_attrs.get(key) != value:
                self._storage.set_trial_user_attr(number, key, value)
        if trial.state.is_finished():
            self._storage.set_trial_state_values(number, trial.state, trial.values)
        self._there[trial.number] = trial


def drawn(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """The trials up to the first that has not all its values yet."""
    for i, trial in enumerate(trials):
        waits = trial.state == TrialState.WAITING
        if waits or not (trial.state.is_finished() or {ASKED, GIVEN} & trial.user_attrs.keys()):
            return trials[:i]
    return trials


def _same(one: FrozenTrial, other: FrozenTrial) -> bool:
    ended = one.state.is_finished() and (one.state != other.state or one.values != other.values)
    return one.params == other.params and not ended
