"""The team's server under 4 sweeps at once: points a second, and what that costs training.

Everything is real and on this machine: PostgreSQL, MLflow's server with its accounts (as docker-compose.yml has them,
but for 2 processes of the server), 4 processes that ship, 4 sweeps that train.

Points a second: 4 shippers send finished runs of 900 points, with all their params, files and tags, until the server
has everything; PostgreSQL is then asked whether each point is there once. The CPU time of a point is told beside it,
of the clients, the server and PostgreSQL: on a busy machine that says more than the clock.

Training's slowdown: CPU time of an epoch, not wall time. Server, database and training share these cores, so that by
the clock training slows down by whatever the server takes: it would not where the server is elsewhere, and that is
what a server is for. What tracking does to training itself shows in the CPU time that the workers spend in `fit`.
Batches of 4 sweeps with tracking and without take turns, doing the same work; each with tracking is compared with its
two neighbours, and the median counts. What shipping takes of a training machine's CPU is told beside it, in ms a run,
a share of the study's own page included: it grows with the run's points and hardly with its time, so to these runs,
which train for half a second, it is more than to real ones.

    python benchmarks/bench_server.py [--runs 20] [--rounds 3] [--workers 2]
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from bench_bookkeeping import CLOCKS, Clock
from figures import REPOSITORY, Figure, judge, study_of, sweep
from serving import Spent, Team, declared, finish, lacking, team

from fanin import shipper
from fanin.folders import Folder
from fanin.shipping import unshipped
from fanin.sweep import delivery, devices
from fanin.tracking import Tracker

SWEEPS = 4
POINTS, EPOCHS = 900, 15  # of a run: 60 metrics, as a default one has
KEYS = [f"weight/layers.{i % 4}/quantity_{i}" for i in range(POINTS // EPOCHS)]
RUNS = 2  # of a sweep that trains
WORK = ["optimizer.lr=0.001,0.002", "epochs=5", "hardware.workers=1"]
INGEST, SLOWER = 3000, 1.05  # points a second, x


@dataclass(frozen=True)
class Drained:
    """What a shipper sent, in which CPU seconds of its own."""

    left: int  # runs that the server did not take
    cpu: float


@dataclass(frozen=True)
class Trained:
    """CPU seconds of a sweep: of its workers in `fit`, and of its thread that ships."""

    fit: float
    shipping: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="that each shipper sends")
    parser.add_argument("--rounds", type=int, default=3, help="of sweeps with tracking and without")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server")
    options = parser.parse_args()
    if lacking():
        print(f"skipped: {lacking()}")
        return 0
    with team(sweeps=SWEEPS, workers=options.workers) as ours:
        ingest = measure_ingest(ours, runs=options.runs)
        slower = measure_training(ours, rounds=options.rounds)
    return judge(
        [
            Figure(f"points a second, {SWEEPS} sweeps", ingest, least=INGEST),
            Figure("CPU time of an epoch, tracked / untracked", slower, "x", most=SLOWER),
        ]
    )


def measure_ingest(ours: Team, *, runs: int) -> float:
    """Points a second that the server takes from as many shippers as there are sweeps."""
    names = [f"ingest{number}" for number in range(SWEEPS)]
    warm = [f"warm{number}" for number in range(SWEEPS)]
    record(ours.folder, warm, runs=2)
    record(ours.folder, names, runs=runs)
    drain_all(ours, warm)  # imports, connections, experiments
    spent = Spent(ours.stack)
    before, began = spent.read(), time.monotonic()
    clients = drain_all(ours, names)
    wall = time.monotonic() - began
    cost = {"shippers": sum(one.cpu for one in clients)}
    cost |= {name: seconds - before[name] for name, seconds in spent.read().items()}
    points = SWEEPS * runs * POINTS
    check_stored(ours.stack, points)
    told = ", ".join(f"{name} {1e6 * seconds / points:.0f}" for name, seconds in cost.items())
    print(f"ingest: {points} points of {SWEEPS * runs} runs in {wall:.1f} s; CPU us a point: {told}", flush=True)
    return points / wall


def record(folder: Path, names: Sequence[str], *, runs: int) -> None:
    """Finished runs of studies that nobody has shipped."""
    with study_of([]) as (study, _):
        variant = study.variant({})
        for name in names:
            specs = [study.spec(variant, number) | {"study": name} for number in range(runs)]
            for number, run in enumerate(declared(folder, name, specs)):
                finish(run, keys=KEYS, epochs=EPOCHS, seed=number)


def drain_all(ours: Team, names: Sequence[str]) -> list[Drained]:
    done = list(ours.sweeps.map(drain, [str(ours.folder)] * len(names), names))
    assert not sum(one.left for one in done), done
    return done


def drain(folder: str, name: str) -> Drained:
    """Ship a study as the end of a sweep does. In a process of its own."""
    began = time.process_time()
    tracker = Tracker(project=folder)
    thread = shipper.Shipper(tracker)
    for run in unshipped(Folder(Path(folder) / ".fanin" / name), uri=tracker.address):
        thread.nudge(run, ended=True)
    left = thread.close(600.0)
    return Drained(len(left), time.process_time() - began)


def measure_training(ours: Team, *, rounds: int) -> float:
    """CPU time of training with tracking / without."""
    train_all(ours, "none")  # imports, data
    batches = [train_all(ours, "none")]
    ratios = []
    for _ in range(rounds):
        batches += [train_all(ours, "local"), train_all(ours, "none")]
        before, tracked, after = batches[-3:]
        ratios.append(2 * tracked.fit / (before.fit + after.fit))
        shipping = 1000 * tracked.shipping / (SWEEPS * RUNS)
        print(
            f"training: {ratios[-1]:.3f}x of {after.fit:.1f} CPU s; shipping takes {shipping:.0f} CPU ms a run",
            flush=True,
        )
    return statistics.median(ratios)


def train_all(ours: Team, tracking: str) -> Trained:
    """4 sweeps at once, each in a project of its own: the sum of what they took."""
    places = [str(ours.folder / f"{tracking}{time.monotonic_ns()}-{number}") for number in range(SWEEPS)]
    done = list(ours.sweeps.map(train, places, [tracking] * SWEEPS))
    return Trained(sum(one.fit for one in done), sum(one.shipping for one in done))


def train(place: str, tracking: str) -> Trained:
    """One sweep to its end, in a process of its own."""
    (Path(place) / CLOCKS).mkdir(parents=True)
    (Path(place) / "conf").symlink_to(REPOSITORY / "conf")
    os.chdir(place)
    devices.TASK = "bench_bookkeeping:TimedTrainer"
    delivery.FLUSH = 600.0  # to the last point: it belongs to the cost
    clock = Clock()
    with patch.object(shipper.Shipper, "_work", shipper.Shipper._work):  # until the block's end
        clock.around(shipper.Shipper, "_work")
        sweep([f"study.name={Path(place).name}", f"tracking={tracking}", *WORK])
    fit = sum(float(file.read_text().split()[1]) for file in Path(CLOCKS).iterdir())
    return Trained(fit, clock.seconds)


def check_stored(stack, points: int) -> None:
    """Every point that the spools have is in PostgreSQL once: asked without any code of ours."""
    query = (
        "select count(*), count(distinct (m.run_uuid, m.key, m.step)) from metrics m join runs r using (run_uuid)"
        " join experiments e using (experiment_id) where e.name like 'ingest%' and m.key like 'weight/%'"
    )
    [row] = stack.read(query)
    assert row == f"{points}|{points}", row


if __name__ == "__main__":
    raise SystemExit(main())
