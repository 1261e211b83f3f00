"""Reads MLflow's tables itself: one query, not four for every run and metric; 20 to 100 times faster.

The tables are not a public interface, so this is used only for schema revisions it was tested with (schema.py);
server.py and client.py read all others. What differs between SQLite and PostgreSQL is in sqlite.py and postgres.py.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import pandas

from fanin.history import Columns, History, gather
from fanin.schema import TESTED_REVISIONS

PARENT = """
select r.run_uuid from runs r
join experiments e on e.experiment_id = r.experiment_id
join tags t on t.run_uuid = r.run_uuid and t.key = 'fanin.swept'
where e.name = :study and e.lifecycle_stage = 'active' and r.lifecycle_stage = 'active'
order by r.start_time desc, r.run_uuid limit 1
"""
CHILDREN = f"""
select r.run_uuid, r.status, r.start_time, r.end_time, r.name from runs r
join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'
where t.value = ({PARENT}) and r.lifecycle_stage = 'active' order by r.start_time, r.run_uuid
"""
VALUE = "case when m.is_nan then null else m.value end"  # null is read as NaN


class Tables(Protocol):
    """MLflow's tables as of one moment."""

    def rows(self, query: str, **parameters: object) -> list[tuple]:
        """The answer to a query with :named parameters."""

    def each(self, name: str) -> str:
        """SQL for the members of the list that is the parameter `name`, to stand behind `in`."""

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> Iterable[Columns]:
        """All points of these runs and metrics."""


class Database:
    """The studies in an MLflow database."""

    def __init__(self, tables: Tables):
        self._tables = tables

    @property
    def untested(self) -> str:
        """The revision of the tables if it is none that this was tested with, else empty."""
        found = {revision for (revision,) in self._tables.rows("select version_num from alembic_version")}
        return ", ".join(sorted(found - TESTED_REVISIONS))

    def studies(self) -> list[str]:
        query = "select name from experiments where lifecycle_stage = 'active'"
        return [name for (name,) in self._tables.rows(query) if name != "Default"]

    def study_tags(self, study: str) -> dict[str, str] | None:
        """The tags of the study's newest parent run, None if it has none."""
        query = f"select key, value from tags where run_uuid = ({PARENT})"
        return dict(self._tables.rows(query, study=study)) or None

    def runs(self, study: str) -> pandas.DataFrame:
        """run_id, status, start, end (unix ms), name: one row a run, in the order of their start."""
        rows = self._tables.rows(CHILDREN, study=study)
        return pandas.DataFrame(rows, columns=["run_id", "status", "start", "end", "name"])

    def entries(self, runs: Sequence[str], table: str, keys: Sequence[str] | None = None) -> list[tuple]:
        """(run, key, value) of these runs' "params" or "tags": of all keys if None."""
        assert table in ("params", "tags")
        query = f"select run_uuid, key, value from {table} where run_uuid in {self._tables.each('runs')}"
        if keys is None:
            return self._tables.rows(query, runs=[*runs])
        return self._tables.rows(f"{query} and key in {self._tables.each('keys')}", runs=[*runs], keys=[*keys])

    def keys(self, runs: Sequence[str]) -> list[str]:
        """The metrics that any of these runs has, sorted."""
        query = f"select distinct key from latest_metrics where run_uuid in {self._tables.each('runs')}"
        return sorted(key for (key,) in self._tables.rows(query, runs=[*runs]))

    def latest(self, runs: Sequence[str], keys: Sequence[str]) -> list[tuple]:
        """(run, key, value): the last value of these metrics; None for NaN."""
        query = f"select m.run_uuid, m.key, {VALUE} from latest_metrics m where m.run_uuid in"
        query += f" {self._tables.each('runs')} and m.key in {self._tables.each('keys')}"
        return self._tables.rows(query, runs=[*runs], keys=[*keys])

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> History:
        """Every point of these runs and metrics; both are numbered as they are given."""
        return gather(self._tables.points(runs, keys))
