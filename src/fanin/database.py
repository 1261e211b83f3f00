"""Reads MLflow's SQLite file itself: one query, not four for every run and metric; 20 to 100 times faster.

The tables are not a public interface, so this is used only for schema revisions it was tested with; server.py
reads all others.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pandas

from fanin.schema import TESTED_REVISIONS, revisions

CHILDREN = """
with parent as (
    select r.run_uuid as id from runs r
    join experiments e on e.experiment_id = r.experiment_id
    join tags t on t.run_uuid = r.run_uuid and t.key = 'fanin.swept'
    where e.name = :study and e.lifecycle_stage = 'active' and r.lifecycle_stage = 'active'
    order by r.start_time desc limit 1
), child as (
    select r.run_uuid as id, r.status, r.start_time, r.end_time, r.name from runs r
    join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'
    where t.value = (select id from parent) and r.lifecycle_stage = 'active'
)
"""
VALUE = "case when m.is_nan then null else m.value end as value"  # null is read as NaN


class Database:
    """The studies in an MLflow SQLite file. Reading never locks out the writer for longer than a query."""

    def __init__(self, path: Path):
        self._path = path

    @property
    def supported(self) -> bool:
        with self._connected() as connection:
            return revisions(connection) <= TESTED_REVISIONS

    def studies(self) -> list[str]:
        with self._connected() as connection:
            query = "select name from experiments where lifecycle_stage = 'active'"
            return [name for (name,) in connection.execute(query) if name != "Default"]

    def study_tags(self, study: str) -> dict[str, str] | None:
        """The tags of the study's newest parent run, None if it has none."""
        query = f"{CHILDREN} select key, value from tags where run_uuid = (select id from parent)"
        with self._connected() as connection:
            return dict(connection.execute(query, {"study": study}).fetchall()) or None

    def runs(self, study: str) -> pandas.DataFrame:
        """run_id, status, start, end (unix ms), name: one row a run, in the order of their start."""
        query = f"{CHILDREN} select id as run_id, status, start_time as start, end_time as end, name from child"
        return self._read(f"{query} order by start_time, id", study=study)

    def entries(self, study: str, table: str) -> pandas.DataFrame:
        """run_id, key, value of all runs' "params" or "tags"."""
        assert table in ("params", "tags")
        query = f"{CHILDREN} select p.run_uuid as run_id, p.key, p.value from {table} p"
        return self._read(f"{query} where p.run_uuid in (select id from child)", study=study)

    def latest(self, study: str) -> pandas.DataFrame:
        """run_id, key, value: the last value of each metric."""
        query = f"{CHILDREN} select m.run_uuid as run_id, m.key, {VALUE} from latest_metrics m"
        return self._read(f"{query} where m.run_uuid in (select id from child)", study=study)

    def points(self, study: str, patterns: Sequence[str]) -> pandas.DataFrame:
        """run_id, key, step, value, time of the metrics that match one of the glob `patterns`."""
        names = {f"pattern{i}": pattern for i, pattern in enumerate(patterns)}
        matches = " or ".join(f"m.key glob :{name}" for name in names)
        columns = f"m.run_uuid as run_id, m.key, m.step, {VALUE}, m.timestamp as time"
        query = f"{CHILDREN} select {columns} from metrics m where m.run_uuid in (select id from child)"
        return self._read(f"{query} and ({matches})", study=study, **names)

    def _read(self, query: str, **parameters: str) -> pandas.DataFrame:
        with self._connected() as connection:
            return pandas.read_sql_query(query, connection, params=parameters)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            yield connection
