"""MLflow's tables of a SQLite file again in a real PostgreSQL, with the roles of docker-compose.yml."""

import sqlite3
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from native_stack import import_stack, postgres, postgres_programs

from fanin.tracking import Tracker

TABLES = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")


@dataclass(frozen=True)
class Copy:
    """Addresses of one database for the role that owns the tables and for the one that may only read them."""

    owner: str
    reader: str


def lacking():
    """What a copy cannot do without and this machine has not; empty if all is there."""
    if postgres_programs() is None:
        return "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
    return "" if find_spec("psycopg") else "psycopg is not installed (pip install 'fanin[server]')"


@contextmanager
def postgres_copy(file, folder):
    """Yields a Copy of MLflow's database in `file`; `folder` gets its secrets."""
    stack = import_stack()
    stack.complete_env(folder / ".env")
    secrets = stack.read_env(folder / ".env")
    with postgres(postgres_programs(), secrets) as cluster:
        place = f"127.0.0.1:{cluster.port}/mlflow"
        owner = f"postgresql+psycopg://mlflow:{secrets['MLFLOW_DB_PASSWORD']}@{place}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SQLAlchemy's
            Tracker(project=folder, uri=owner).connect()  # MLflow makes its tables
        copy_rows(file, owner)
        yield Copy(owner, f"postgresql://reader:{secrets['READER_DB_PASSWORD']}@{place}")


def copy_rows(file, uri):
    import psycopg

    target = psycopg.connect(uri.replace("+psycopg", ""))
    with closing(sqlite3.connect(file)) as source, target:
        for table in reversed(TABLES):
            target.execute(f"delete from {table}")
        for table in TABLES:
            names = ", ".join(name for _, name, *_ in source.execute(f"pragma table_info({table})"))
            with target.cursor().copy(f"copy {table} ({names}) from stdin") as copy:
                for row in source.execute(f"select {names} from {table}"):
                    copy.write_row(row)
    target.close()
