"""Studies and runs as a coordinator and its workers leave them on disk, and what of them is in MLflow's database."""

import sqlite3
import tempfile
import time
from contextlib import closing
from functools import cache
from pathlib import Path

from fanin.folders import declare_run, declare_study
from fanin.spool import Spool
from fanin.tracking import Tracker

CONFIG = {
    "epochs": 2,
    "seed": 0,
    "initializer": {"_target_": "fanin.initializers.he_normal", "gain": 2**0.5, "bias": "zeros"},
    "model": {"widths": [256, 256], "activation": "relu"},
    "optimizer": {"lr": 1e-05, "fused": True, "schedule": None},
    "regularization": {"applied": {}, "dropout": 0.0},
    "study": {"question": "not a param"},
}


def make_study(project, name="initializers", *, start=1_000, **fields):
    fields = {"question": "Which one?", "swept": ["initializer", "optimizer.lr"]} | fields
    study = declare_study(project, name, **fields)
    with Spool(study.spool) as spool:
        spool.append("start", time=start)
    return study


def make_run(study, *, variant="aaaaaaaaaa", replicate=0, config=CONFIG, initializer="he_normal"):
    overrides = {"initializer": initializer, "optimizer.lr": config["optimizer"]["lr"]}
    spec = {"key": f"{variant}-r{replicate}", "variant": variant, "replicate": replicate}
    spec |= {"name": f"initializer={initializer} r{replicate}", "overrides": overrides}
    spec |= {"choices": {"initializer": initializer, "model": "mlp"}, "config": config}
    return declare_run(study, spec)


def accuracy(epoch):
    return 0.1 + epoch / 7


def train(folder, *, first=0, last=2, end="FINISHED", clock=10_000, metrics=None, **fields):
    """Write a spool as one attempt does: a start, the epochs, an end unless `end` is None."""
    with Spool(folder.spool) as spool:
        spool.append("start", time=clock + first)
        for epoch in range(first, last + 1):
            values = metrics(epoch) if metrics else {"val/accuracy": accuracy(epoch), "val/loss": 2.0 - epoch}
            spool.append("epoch", epoch=epoch, metrics=values, time=clock + 100 * epoch)
        if end:
            results = {"test/accuracy": 0.5} if end == "FINISHED" else {}
            fields = {"metrics": results, "step": last, "reason": None} | fields
            spool.append("end", status=end, time=clock + 100 * last + 50, **fields)
    return folder


def stored(database, query="select key, step, value, is_nan, timestamp from metrics order by key, step"):
    """Read the database without any code of ours or MLflow's."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def stored_runs(database):
    """The children in the database: (name, status, start, end), deleted ones left out."""
    children = "select run_uuid from tags where key = 'mlflow.parentRunId'"
    rule = f"lifecycle_stage = 'active' and run_uuid in ({children})"
    return stored(database, f"select name, status, start_time, end_time from runs where {rule} order by name")


def tags_of(database, name):
    query = f"select t.key, t.value from tags t join runs r using (run_uuid) where r.name = '{name}'"
    return dict(stored(database, query))


def params_of(database, name):
    query = f"select p.key, p.value from params p join runs r using (run_uuid) where r.name = '{name}'"
    return dict(stored(database, query))


def wait_until(condition, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.02)


def copy_database(source, target):
    """With what is still in the write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    return target


@cache
def empty_database():
    """The bytes of a database that MLflow has just made, which takes it seconds of migrations."""
    with tempfile.TemporaryDirectory() as folder:
        Tracker(project=folder, uri="sqlite:///mlflow.db").connect()
        return copy_database(f"{folder}/mlflow.db", Path(folder) / "copy.db").read_bytes()


def new_database(path):
    path.write_bytes(empty_database())
    return path
