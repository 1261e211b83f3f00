"""Which versions of MLflow's SQLite tables we read and write ourselves.

They are no public interface, so every other version is left to MLflow.
"""

import sqlite3

TESTED_REVISIONS = {"dc11669786a5"}  # of MLflow 3.17


def revisions(connection: sqlite3.Connection) -> set[str]:
    """The schema revisions a database is at."""
    return {revision for (revision,) in connection.execute("select version_num from alembic_version")}
