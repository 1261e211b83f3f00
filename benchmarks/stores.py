"""What a run and a point cost each store: CPU time of the process that ships, and bytes. docs/scale.md has the results.

The same finished runs are shipped to SQLite, to PostgreSQL and through a server of MLflow's on SQLite (its own CPU time
beside ours), with two numbers of epochs: the difference is what points cost, the rest what a run costs. It judges
nothing, so `make bench` leaves it out.

    python benchmarks/stores.py [--runs 40] [--metrics 60] [--epochs 5,25]
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
from figures import REPOSITORY, project

from fanin.shipping import ship
from fanin.tracking import Tracker

sys.path.insert(0, str(REPOSITORY / "tests"))
from databases import lacking  # noqa: E402
from native_stack import import_stack, postgres, postgres_programs  # noqa: E402
from recorded import make_run, make_study, new_database, train  # noqa: E402
from servers import mlflow_server  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--metrics", type=int, default=60)
    parser.add_argument("--epochs", default="5,25")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of SQLAlchemy's
    for name, store in {"SQLite": sqlite, "PostgreSQL": postgresql, "server on SQLite": served}.items():
        if store is postgresql and lacking():
            print(f"{name}: left out: {lacking()}")
            continue
        with project() as folder:
            store(name, folder, [int(epochs) for epochs in options.epochs.split(",")], options)


def sqlite(name: str, folder: Path, epochs: list[int], options: argparse.Namespace) -> None:
    database = new_database(folder / "mlflow.db")
    tell(name, folder, "sqlite:///mlflow.db", epochs, options, size=lambda: size_of(database))


def served(name: str, folder: Path, epochs: list[int], options: argparse.Namespace) -> None:
    database = new_database(folder / "server.db")
    with mlflow_server(folder) as uri:
        servers = psutil.Process().children(recursive=True)
        used = lambda: sum(sum(one.cpu_times()[:2]) for one in servers)  # noqa: E731
        tell(name, folder, uri, epochs, options, size=lambda: size_of(database), used=used)


def postgresql(name: str, folder: Path, epochs: list[int], options: argparse.Namespace) -> None:
    stack = import_stack()
    stack.complete_env(folder / ".env")
    secrets = stack.read_env(folder / ".env")
    with postgres(postgres_programs(), secrets) as cluster:
        password = secrets["MLFLOW_DB_PASSWORD"]
        uri = f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{cluster.port}/mlflow"
        size = lambda: int(cluster.ask("select pg_database_size('mlflow')", password=password)[0])  # noqa: E731
        tell(name, folder, uri, epochs, options, size=size)


def size_of(database: Path) -> int:
    """With what is still in the write-ahead log."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def tell(
    name: str,
    folder: Path,
    uri: str,
    epochs: list[int],
    options: argparse.Namespace,
    *,
    size: Callable[[], int],
    used: Callable[[], float] = lambda: 0.0,
) -> None:
    """Print the cost of a run without points and of a point: a line through the two numbers of epochs."""
    tracker = Tracker(project=folder, uri=uri)
    metrics = {f"weight/layers.{i % 3}/m{i}": i / 7 for i in range(options.metrics)}
    costs = []
    study = make_study(folder)
    for last in [epochs[0], *epochs]:  # the first round warms up
        variant = f"{len(costs)}epochs{last}"
        runs = [make_run(study, variant=variant, replicate=number) for number in range(options.runs)]
        for run in runs:
            train(run, last=last - 1, metrics=lambda _: metrics)
        before = (time.process_time(), used(), size(), time.monotonic())
        for run in runs:
            ship(run, tracker=tracker)
        after = (time.process_time(), used(), size(), time.monotonic())
        costs.append([(b - a) / options.runs for a, b in zip(before, after, strict=True)])
    points = [options.metrics * last for last in epochs]
    print(f"{name}: {options.runs} runs of {points[0]} and of {points[1]} points")
    for what, scale, unit, few, many in zip(
        ("CPU time here", "CPU time of the server", "size", "elapsed"),
        (1e6, 1e6, 1, 1e6),
        ("us", "us", "bytes", "us"),
        costs[1],
        costs[2],
        strict=True,
    ):
        if not many:  # where there is no server, or not one whose time we can read
            continue
        point = (many - few) / (points[1] - points[0])
        print(f"  {what}: a point {scale * point:.4g} {unit}, a run {scale * (few - point * points[0]):.4g} {unit}")


if __name__ == "__main__":
    main()
