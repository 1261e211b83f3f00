"""10,000 runs by 64 workers against a team's server: does ingest stay flat, what does it weigh, and how is it read?

Nothing is trained. Finished runs of 15 epochs x 20 metrics appear in the spools of several sweeps, as fast as so many
workers would finish them or, by default, as fast as they are taken; each sweep is a process that ships with the real
Shipper through MLflow's server with accounts to PostgreSQL (as docker-compose.yml has them). Reported for every
500 runs: runs and points a second, latency of requests by route, CPU time of a run, bytes in the database; at the end,
reading the study back from PostgreSQL (FANIN_READ_URI) and through the server. It judges nothing, so `make bench`
leaves it out; on 2 cores 10,000 runs take 20 minutes.

    nice python benchmarks/simulate_cluster.py [--runs 10000] [--workers 64] [--sweeps 4] [--minutes 10]
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import study_of
from serving import Spent, Team, declared, finish, lacking, team

import fanin
from fanin.folders import Folder, declare_run
from fanin.shipper import Shipper
from fanin.tracking import Tracker

EPOCHS = 15
KEYS = [f"weight/layers.{i % 4}/quantity_{i}" for i in range(19)] + ["val/accuracy"]
POINTS = EPOCHS * len(KEYS)
PART = 500  # runs, after which figures are told
WARM = 1_000_000  # numbers of the runs before the first: imports, connections, experiments


@dataclass
class Part:
    """What happened while one sweep's share of PART runs was shipped."""

    wall: float = 0.0
    cpu: float = 0.0
    left: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # route -> s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64, help="that train, of all sweeps together")
    parser.add_argument("--sweeps", type=int, default=4, help="each a process that ships what its workers finish")
    parser.add_argument("--minutes", type=float, default=1e9, help="to stop after, whatever was reached")
    parser.add_argument("--server", type=int, default=2, help="processes of the server")
    options = parser.parse_args()
    if lacking():
        print(f"skipped: {lacking()}")
        return 0
    with team(sweeps=options.sweeps, workers=options.server) as ours:
        simulate(ours, options)
        read_back(ours, sweeps=options.sweeps)
    return 0


def simulate(ours: Team, options: argparse.Namespace) -> None:
    """Ship all runs, and tell what every PART of them took."""
    with study_of([]) as (study, _):
        spec = study.spec(study.variant({}), 0)
    names = [f"cluster{number}" for number in range(options.sweeps)]
    for name in names:
        declared(ours.folder, name, [])
    crew, each = options.workers // options.sweeps, PART // options.sweeps

    def play_all(first: int, stop: int) -> list[Part]:
        work = [(str(ours.folder), name, spec, first, stop, crew) for name in names]
        return list(ours.sweeps.map(play, *zip(*work, strict=True)))

    play_all(WARM, WARM + crew)
    spent, began, done = Spent(ours.stack), time.monotonic(), 0
    before, empty = spent.read(), database_size(ours.stack)
    while done < options.runs and time.monotonic() < began + 60 * options.minutes:
        first = done // options.sweeps
        parts = play_all(first, first + each)
        done += each * options.sweeps
        assert not sum(part.left for part in parts), [part.left for part in parts]
        now = spent.read()
        cost = {"shippers": sum(part.cpu for part in parts)} | {key: now[key] - before[key] for key in now}
        before = now
        tell(done, parts, cost, runs=each * options.sweeps)
    size = database_size(ours.stack)
    wall = time.monotonic() - began
    [stored] = ours.stack.read("select count(*) from metrics where key = 'val/accuracy' or key like 'weight/%'")
    assert int(stored) == (done + options.sweeps * crew) * POINTS, stored
    print(
        f"{done} runs, {done * POINTS} points in {wall:.0f} s; {(size - empty) / done / 1000:.1f} kB of database a run,"
    )
    print(f"{(size - empty) / done / POINTS:.0f} bytes a point if points were all", flush=True)


def tell(done: int, parts: list[Part], cost: dict[str, float], *, runs: int) -> None:
    wall = max(part.wall for part in parts)
    print(f"{done:6d} runs: {runs / wall:5.1f} runs/s, {runs * POINTS / wall:5.0f} points/s;", end=" ")
    print("CPU ms a run:", ", ".join(f"{name} {1e3 * seconds / runs:.0f}" for name, seconds in cost.items()), end="; ")
    every = defaultdict(list)
    for part in parts:
        for route, times in part.latencies.items():
            every[route] += times
    for route, times in sorted(every.items()):
        median, last = np.quantile(times, (0.5, 0.95))  # a rare route may have been asked once
        print(f"{route} {1e3 * median:.0f}-{1e3 * last:.0f}", end=" ")
    print(f"ms (median-95 %); load {os.getloadavg()[0]:.1f}", flush=True)


def play(folder: str, name: str, spec: dict[str, Any], first: int, stop: int, crew: int) -> Part:
    """A sweep in a process of its own: as many runs at a time as it has workers, shipped meanwhile."""
    part = Part()
    tracker = trackers.setdefault(name, Tracker(project=folder))
    study = Folder(Path(folder) / ".fanin" / name)
    began, cpu = time.monotonic(), time.process_time()
    shipper = Shipper(tracker)
    with timed(part.latencies):
        for number in range(first, stop, crew):
            some = range(number, min(number + crew, stop))
            specs = [spec | {"study": name, "key": f"v{one % 997}-r{one}", "replicate": one} for one in some]
            runs = [declare_run(study, one) for one in specs]
            for one, run in zip(some, runs, strict=True):
                finish(run, keys=KEYS, epochs=EPOCHS, seed=one)
                shipper.nudge(run, ended=True)
        part.left = len(shipper.close(3600.0))
    part.wall, part.cpu = time.monotonic() - began, time.process_time() - cpu
    return part


trackers: dict[str, Tracker] = {}  # of a sweep's process: its connections stay open


@contextmanager
def timed(latencies: dict[str, list[float]]) -> Iterator[None]:
    """Seconds of every request of this process, by route."""
    import requests

    usual = requests.Session.request

    def request(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        began = time.perf_counter()
        try:
            return usual(session, method, url, **options)
        finally:
            route = "artifact" if "artifacts" in url else url.partition("/mlflow/")[2]
            latencies[route].append(time.perf_counter() - began)

    requests.Session.request = request  # type: ignore[method-assign]
    try:
        yield
    finally:
        requests.Session.request = usual  # type: ignore[method-assign]


def database_size(stack: Any) -> int:
    return int(stack.read("select pg_database_size('mlflow')")[0])


def read_back(ours: Team, *, sweeps: int) -> None:
    """All points of all studies as data frames, straight from PostgreSQL and through the server."""
    password, port = ours.stack.secrets["READER_DB_PASSWORD"], ours.stack.cluster.port
    for way, uri in {"PostgreSQL": f"postgresql://reader:{password}@127.0.0.1:{port}/mlflow", "the server": ""}.items():
        os.environ |= {"FANIN_READ_URI": uri} if uri else {}
        if not uri:
            del os.environ["FANIN_READ_URI"]
        for what, keys in {"the leaderboard": None, "one curve a run": ["val/accuracy"], "all points": KEYS}.items():
            began, rows = time.monotonic(), 0
            for number in range(sweeps):
                study = f"cluster{number}"
                table = (
                    fanin.curves(study, keys, project=ours.folder) if keys else fanin.runs(study, project=ours.folder)
                )
                rows += len(table)
            print(f"{way}: {what}, {rows} rows of {sweeps} studies: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
