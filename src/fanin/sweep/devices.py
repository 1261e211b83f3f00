"""How many workers a machine feeds, and which devices each of them sees; or which cluster has them."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fanin.errors import require, unknown
from fanin.ranges import is_whole
from fanin.sweep.checks import call
from fanin.sweep.pool import Pool as AnyPool
from fanin.sweep.workers import Pool

TASK = "fanin.run:Trainer"
CLUSTERS = {"none": None, "ray": "ray", "slurm": "submitit"}  # and the package each needs, of the extra of its name


def open_pool(hardware: Mapping[str, Any]) -> Pool:
    """A pool of one worker, for the checks; `size_pool` decides on the rest. Raises ConfigError."""
    check_hardware(hardware)
    threads = hardware["threads"]
    return Pool(TASK, arguments={"threads": threads}, size=1, threads=threads)


def check_hardware(hardware: Mapping[str, Any]) -> None:
    for key in ("threads", "workers"):
        value = hardware[key]
        whole = is_whole(value, least=1) or (key == "workers" and value == "auto")
        require(whole, f"hardware.{key}", "must be a whole number >= 1" + " or auto" * (key == "workers"), value)
    if hardware["cluster"] not in CLUSTERS:
        raise unknown("hardware.cluster", hardware["cluster"], CLUSTERS)
    package = CLUSTERS[hardware["cluster"]]
    there = package is None or importlib.util.find_spec(package) is not None
    rule = f"{package} is not installed here: pip install 'fanin[{hardware['cluster']}]'"
    require(there, "hardware.cluster", rule, hardware["cluster"])
    share = hardware["gpus_per_run"]
    fits = isinstance(share, int | float) and (0 < share <= 1 or (share > 1 and share == int(share)))
    require(fits, "hardware.gpus_per_run", "must be a fraction of one GPU or a whole number of them", share)
    for key in ("patience", "checkpoint"):
        value = hardware[key]
        require(isinstance(value, int | float) and value >= 0, f"hardware.{key}", "must be seconds >= 0", value)


def core_count() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size_pool(pool: Pool, hardware: Mapping[str, Any], *, runs: int) -> None:
    """Decide how many workers there are here, and which GPUs each of them sees."""
    cores = core_count()
    wanted = hardware["workers"]
    if hardware["cluster"] != "none":
        return  # this pool is for the checks only
    devices = call(pool, "devices", hardware["device"])
    if devices["device"] == "cuda":
        pool.environments = gpu_shares(devices["cuda"], hardware["gpus_per_run"])
        limit = len(pool.environments)
        require(
            wanted == "auto" or wanted <= limit,
            "hardware.workers",
            f"these GPUs serve at most {limit}",
            wanted,
        )
        pool.close()  # the first worker saw every GPU
    else:
        limit = max(1, cores // hardware["threads"]) if devices["device"] == "cpu" else 1
        if wanted != "auto" and wanted > limit and devices["device"] == "cpu":
            print(
                f"fanin: hardware.workers={wanted} x threads={hardware['threads']} is more than the {cores} cores "
                "here: slower, not faster",
                file=sys.stderr,
            )
    pool.size = min(limit if wanted == "auto" else wanted, runs)


@contextmanager
def crew(pool: Pool, hardware: Mapping[str, Any], *, runs: int) -> Iterator[AnyPool]:
    """The workers that train: those of `pool`, or, once it has served for the checks, others on a cluster.

    Raises ConfigError for a cluster that does not answer, or has no room.
    """
    if hardware["cluster"] == "none":
        yield pool
        return
    pool.close()
    arguments = {"threads": hardware["threads"]}
    module = importlib.import_module(f"fanin.sweep.{hardware['cluster']}_pool")
    with module.cluster(hardware, runs=runs, task=TASK, arguments=arguments) as workers:
        yield workers


def gpu_shares(count: int, per_run: float) -> list[dict[str, str]]:
    """CUDA_VISIBLE_DEVICES for each worker slot: 1 / per_run workers share a GPU, or each gets per_run of them."""
    if per_run <= 1:
        slots = [gpu for _ in range(int(1 / per_run + 1e-9)) for gpu in range(count)]
        return [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in slots]
    each = int(per_run)
    require(each <= count, "hardware.gpus_per_run", f"this machine has {count} GPUs", per_run)
    groups = [range(first, first + each) for first in range(0, count - each + 1, each)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(map(str, group))} for group in groups]
