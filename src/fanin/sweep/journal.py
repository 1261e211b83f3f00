"""Optuna's journal file, owned by one coordinator: repaired before it is opened, appended to cheaply.

Optuna's own file backend takes a lock and syncs the disk for each of the dozen records of a trial, because
many processes may write. Here one process writes; a record is one `write` call, which survives a kill of the
process, and `sync` makes a finished trial survive a power cut. The format is Optuna's, so optuna-dashboard
and `optuna.load_study` read the file as it is.
"""

import copy
import itertools
import json
import logging
import math
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from fanin.errors import ConfigError, require, unknown

log = logging.getLogger(__name__)

SPACE = "fanin.space"  # our mark on the study: the axes it was asked about
ASKED = "fanin.asked"  # and on a trial: all its values are drawn


class Journal(JournalFileBackend):
    """A journal file with one writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in logs)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            start = os.fstat(descriptor).st_size
            written = os.write(descriptor, data)
            if written < len(data):  # a full disk: take the torn record back, so that the file stays readable
                os.ftruncate(descriptor, start)
                raise OSError(f"{self.path}: the disk took {written} of {len(data)} bytes")
        finally:
            os.close(descriptor)

    @property
    def undecided(self) -> int | None:
        """The trial whose report is the last record: a coordinator may have died before it wrote what it made of it."""
        lines = self.path.read_bytes().splitlines(keepends=True)[-1:] if self.path.exists() else []
        record = _record(lines[0]) if lines else None
        if record is None or record["op_code"] != JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE:
            return None
        return int(record["trial_id"])

    def sync(self) -> None:
        """Put what was appended on the disk."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Storage(JournalStorage):
    """A journal's trials without going through all of them. Optuna does, at every ask, to find those that wait; but
    what has ended never changes, so the first ones that have are passed over."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._ended: dict[int, int] = {}  # study -> how many of its first trials have ended

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states is None or any(state in states for state in TrialState if state.is_finished()):
            return super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        found = [trial for trial in self.unended(study_id) if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def unended(self, study_id: int) -> list[FrozenTrial]:
        """The trials from the first that has not ended on."""
        trials = self.since(study_id, self._ended.get(study_id, 0))
        ended = sum(1 for _ in itertools.takewhile(lambda trial: trial.state.is_finished(), trials))
        self._ended[study_id] = self._ended.get(study_id, 0) + ended
        return trials[ended:]

    def since(self, study_id: int, number: int) -> list[FrozenTrial]:
        """The trials from that number on."""
        with self._thread_lock:
            self._sync_with_backend()
            replayed = self._replay_result
            return [replayed._trials[trial] for trial in replayed._study_id_to_trial_ids[study_id][number:]]

    def count(self, study_id: int) -> int:
        with self._thread_lock:
            self._sync_with_backend()
            return len(self._replay_result._study_id_to_trial_ids[study_id])


def open_study(
    path: Path,
    name: str,
    *,
    directions: Sequence[str],
    space: Mapping[str, str],
    kinds: Mapping[str, BaseDistribution],
    extend: bool,
) -> tuple[optuna.Study, Storage, Journal]:
    """Open or create the study `name`. `space` describes its axes (name -> text), `kinds` are their
    distributions. A study of another space is taken over with `extend`, else refused (ConfigError), like
    another direction."""
    study, storage, journal = _load(path, name, directions)
    found = [direction.name.lower() for direction in study.directions]
    require(
        found == list(directions),
        "study.direction",
        f"the study {name} was begun with {found}",
        list(directions),
    )
    before = study.user_attrs.get(SPACE)
    if before is not None and before != dict(space):
        if not extend:
            changed = sorted(key for key in {*before, *space} if before.get(key) != space.get(key))
            raise ConfigError(
                f"study {name}: its space has changed in {', '.join(changed)}; take the earlier trials over "
                "with --extend, or start again with --new"
            )
        rewrite(path, name, kinds)
        study, storage, journal = _load(path, name, directions)
    if before != dict(space):
        study.set_user_attr(SPACE, dict(space))
    return study, storage, journal


def _load(path: Path, name: str, directions: Sequence[str]) -> tuple[optuna.Study, Storage, Journal]:
    journal = Journal(path)
    storage = Storage(journal)
    if name in [study.study_name for study in storage.get_all_studies()]:
        return optuna.load_study(study_name=name, storage=storage), storage, journal
    kinds = [StudyDirection[direction.upper()] for direction in directions]
    return optuna.create_study(study_name=name, storage=storage, directions=kinds), storage, journal


def repair(path: Path) -> int:
    """Cut what a killed coordinator left unfinished at the journal's end; returns the number of bytes cut.

    A process killed in the middle of a write, or a full disk, leaves a torn last line, to which the next
    record would be glued: from then on Optuna could not open the file at all. And a trial killed while its
    values were drawn, one record each, would be completed with other values than it would have got; nobody
    has seen it, so its records go too. Bytes that are cut are kept beside the file.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    good, drawing = 0, None  # where the records of a trial begin whose values are not all drawn
    for line in data.splitlines(keepends=True):
        record = _record(line)
        if record is None:
            break
        if _begins(record):
            drawing = good
        elif ASKED in record.get("user_attr", ()):
            drawing = None
        good += len(line)
    keep = good if drawing is None else drawing
    cut = data[keep:]
    if cut:
        path.with_name(path.name + ".cut").write_bytes(cut)
        with path.open("r+b") as file:
            file.truncate(keep)
    if good < len(data):
        log.warning("%s: cut %d unreadable bytes at the end (kept in %s.cut)", path, len(data) - good, path.name)
    return len(cut)


def _begins(record: Mapping[str, Any]) -> bool:
    """Whether a trial is begun here, new or from the queue. One that has its state at once was written
    whole."""
    if record["op_code"] == JournalOperation.CREATE_TRIAL:
        return "state" not in record
    return record["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES and record["state"] == TrialState.RUNNING


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for what is torn or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def rewrite(path: Path, name: str, distributions: Mapping[str, BaseDistribution]) -> None:
    """Write the study `name` anew with wider `distributions` (parameter name -> distribution).

    Optuna refuses other choices under the name of an old parameter, and TPE ignores a parameter whose bounds
    changed. So the trials are copied, numbers and states kept, into a new file that then replaces the old
    one. Raises ConfigError when a finished trial lies outside the new space.
    """
    old = optuna.load_study(study_name=name, storage=JournalStorage(Journal(path)))
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    backend = Journal(draft)
    new = optuna.create_study(study_name=name, storage=JournalStorage(backend), directions=old.directions)
    for key, value in old.user_attrs.items():
        new.set_user_attr(key, value)
    for trial in old.get_trials(deepcopy=False):
        new.add_trial(_moved(trial, distributions))
    backend.sync()
    os.replace(draft, path)


def _moved(trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    try:
        moved = create_trial(
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions={name: distributions.get(name, old) for name, old in trial.distributions.items()},
            user_attrs=trial.user_attrs,
            system_attrs=trial.system_attrs,
            intermediate_values=trial.intermediate_values,
        )
    except ValueError as error:
        raise ConfigError(
            f"study: trial {trial.number} ({trial.params}) lies outside the new space, and an extension only "
            "adds points; keep the old values in the space, or start again with --new"
        ) from error
    moved.datetime_start, moved.datetime_complete = trial.datetime_start, trial.datetime_complete
    return moved


def best_points(path: Path, *, name: str) -> list[dict[str, str]]:
    """The points of the complete trials of the search `name`, best first (by its first objective), as axis
    name -> text. Reads only. Raises ConfigError when there is no such file or search."""
    require(path.exists(), "study.warm_start", "the other study must have been searched", str(path))
    storage = JournalStorage(JournalFileBackend(str(path)))
    names = [study.study_name for study in storage.get_all_studies()]
    if name not in names:
        raise unknown("study.warm_start", name, names)
    study = optuna.load_study(study_name=name, storage=storage)
    trials = [t for t in study.get_trials(states=(TrialState.COMPLETE,)) if math.isfinite(t.values[0])]
    sign = 1.0 if study.directions[0] == StudyDirection.MINIMIZE else -1.0
    ordered = sorted(trials, key=lambda trial: (sign * trial.values[0], trial.number))
    points = [{key: str(value) for key, value in trial.params.items()} for trial in ordered]
    return [point for i, point in enumerate(points) if point not in points[:i]]
