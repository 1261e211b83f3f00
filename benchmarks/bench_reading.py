"""Seconds to read a study into a DataFrame: 1,000 runs x 60 metrics x 15 epochs, 900,000 points, from everywhere.

From MLflow's SQLite file (at most 5 s), from PostgreSQL (at most 10 s; left out where its server is not installed)
and through an MLflow server of four processes, MLflow's default, in at least 20 times less than a loop of
`MlflowClient.get_metric_history` takes. The loop runs over a sample of the same runs, and its time is scaled to all
of them; that of ours counts in full. All must give the same values, NaN and infinities among them.

One study and one run are tracked as ever; the others are that run again with points of their own, in the rows that
MLflow would have written. Each read is done twice, and the better time counts: the first finds a cold file.

    python benchmarks/bench_reading.py [--runs 1000] [--metrics 60] [--epochs 15] [--sample 5]
"""

import argparse
import math
import random
import sqlite3
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy
import pandas
from figures import REPOSITORY, Figure, judge, project

import fanin
from fanin import bulk
from fanin.points import Point
from fanin.shipping import ship
from fanin.tracking import Tracker

sys.path.insert(0, str(REPOSITORY / "tests"))
from databases import lacking, postgres_copy  # noqa: E402
from recorded import make_run, make_study, train  # noqa: E402
from servers import mlflow_server  # noqa: E402

STUDY = "reading"
SQLITE, POSTGRES, FASTER = 5.0, 10.0, 20.0  # s, s, times
STATISTICS = ("weight/{}/mean", "weight/{}/std", "weight/{}/norm", "grad/{}/norm", "update/{}/ratio")
STATISTICS += ("activation/{}/mean", "activation/{}/dead", "signal/{}/forward_gain", "signal/{}/backward_gain")
OF_A_RUN = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "seconds", "diverged")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--sample", type=int, default=5, help="runs that the loop reads")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of SQLAlchemy's
    figures = []
    with project() as folder:
        began = time.monotonic()
        database = build(folder, options)
        print(f"{database.stat().st_size / 1e6:.0f} MB written in {time.monotonic() - began:.0f} s", flush=True)
        seconds, table = read(uri="sqlite:///mlflow.db")
        assert len(table) == options.runs * options.metrics * options.epochs
        told = f"{len(table):,} points, {table.memory_usage(deep=True).sum() / 1e6:.0f} MB"
        figures.append(Figure(f"SQLite -> DataFrame ({told})", seconds, " s", most=SQLITE))
        if lacking():
            print(f"left out: {lacking()}")
        else:
            with postgres_copy(database, folder) as copy:
                seconds, found = read(uri=copy.reader.replace("postgresql:", "postgresql+psycopg:"))
                pandas.testing.assert_frame_equal(found, table)
                figures.append(Figure("PostgreSQL -> DataFrame", seconds, " s", most=POSTGRES))
        figures.append(faster(folder, database, table, options.sample))
    return judge(figures)


def read(uri: str, *, times: int = 2) -> tuple[float, pandas.DataFrame]:
    """(seconds of the best of some, the study's curves)"""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        table = fanin.curves(STUDY, uri=uri)
        taken.append(time.monotonic() - began)
    print(f"{uri.split('@')[-1]}: {', '.join(f'{seconds:.2f}' for seconds in taken)} s", flush=True)
    return min(taken), table


def faster(folder: Path, database: Path, table: pandas.DataFrame, sample: int) -> Figure:
    """How many times faster than a loop of MLflow's client ours is through a server."""
    with closing(sqlite3.connect(database)) as connection:  # all of it into the file that is moved
        connection.execute("pragma wal_checkpoint(truncate)")
    database.rename(folder / "server.db")
    with mlflow_server(folder, workers=4) as uri:
        seconds, found = read(uri=uri, times=1)
        pandas.testing.assert_frame_equal(found, table)
        some = table[table["run_id"].isin(table["run_id"].cat.categories[:sample])]
        began = time.monotonic()
        looped = loop(uri, some)
        each = (time.monotonic() - began) / len(looped)
    numpy.testing.assert_array_equal(numpy.concatenate(looped), some["value"])
    series = len(table.groupby(["run_id", "metric"], observed=True))
    whole = each * series
    print(f"loop: {1000 * each:.1f} ms a run and metric, {whole:.0f} s for all {series:,}; ours {seconds:.1f} s")
    return Figure("MLflow server: get_metric_history loop / ours", whole / seconds, "x", least=FASTER)


def loop(uri: str, some: pandas.DataFrame) -> list[numpy.ndarray]:
    """The values of each run and metric, as its user would read them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    pairs = some[["run_id", "metric"]].drop_duplicates().itertuples(index=False)
    largest = bulk.LARGEST
    found = []
    for run, metric in pairs:
        history = sorted(client.get_metric_history(run, metric), key=lambda point: point.step)
        values = [point.value for point in history]
        found.append(numpy.array([math.copysign(math.inf, v) if abs(v) >= largest else v for v in values]))
    return found


def build(folder: Path, options: argparse.Namespace) -> Path:
    """MLflow's database of the project, with the study in it."""
    first = train(make_run(make_study(folder, STUDY)), last=0, metrics=lambda _: {"seconds": 1.0})
    ship(first, tracker=Tracker(project=folder, uri="sqlite:///mlflow.db"))
    database = folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("pragma cache_size = -400000")
        runs = clone(connection, options.runs)
        connection.executemany(bulk.INSERT, (bulk.row(point, run) for run, point in points(runs, options)))
        last = (bulk.row(point, run) for run, point in points(runs, options) if point.step == options.epochs - 1)
        connection.executemany(bulk.LATEST, last)
    return database


def clone(connection: sqlite3.Connection, number: int) -> list[str]:
    """The ids of so many runs: the one that is there, without its points, and copies of it in threes of replicates."""
    (first,) = connection.execute("select run_uuid from tags where key = 'fanin.variant'").fetchone()
    for table in ("metrics", "latest_metrics"):
        connection.execute(f"delete from {table} where run_uuid = ?", [first])
    runs = [first, *(uuid.UUID(int=random.Random(i).getrandbits(128)).hex for i in range(1, number))]
    for table in ("runs", "params", "tags"):
        names = [name for _, name, *_ in connection.execute(f"pragma table_info({table})") if name != "run_uuid"]
        listed = ", ".join(names)
        copy = f"insert into {table} (run_uuid, {listed}) select ?, {listed} from {table} where run_uuid = ?"
        connection.executemany(copy, [(run, first) for run in runs[1:]])
    update = "update tags set value = ? where key = ? and run_uuid = ?"
    connection.executemany(update, [(f"{i // 3:010x}", "fanin.variant", run) for i, run in enumerate(runs)])
    connection.executemany(update, [(str(i % 3), "fanin.replicate", run) for i, run in enumerate(runs)])
    return runs


def points(runs: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, Point]]:
    """Every run's points in the order of MLflow's primary key, which makes writing them quick; always the same."""
    draw = random.Random(0)
    odd: list[Callable[[], float]] = [lambda: math.nan, lambda: math.inf, lambda: -math.inf]
    for key in sorted(names(options.metrics)):
        for step in range(options.epochs):
            for number, run in enumerate(sorted(runs)):
                value = draw.choice(odd)() if draw.random() < 0.001 else draw.gauss(0.0, 1.0)
                yield run, Point(key, value, 1_700_000_000_000 + 10_000 * step + number, step)


def names(number: int) -> list[str]:
    """So many names of metrics, most of them of layers as in any study."""
    layers = (f"layers.{i}" for i in range(number))
    every = [*OF_A_RUN, *(statistic.format(layer) for layer in layers for statistic in STATISTICS)]
    return every[:number]


if __name__ == "__main__":
    raise SystemExit(main())
