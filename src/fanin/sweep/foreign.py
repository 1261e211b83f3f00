"""Multiruns of a foreign Hydra program: any @hydra.main function that returns a number (or one per objective).

Same engine, same promises: no batch barrier, a dead job is retried, the same command goes on where it stopped.
The function travels to the workers by cloudpickle, since a program's main module cannot be imported twice.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, run_job, setup_globals
from omegaconf import OmegaConf, open_dict

from fanin.errors import ConfigError, require
from fanin.spool import Spool
from fanin.sweep import grammar
from fanin.sweep.compose import Composer
from fanin.sweep.reading import Settings, check_study
from fanin.sweep.study import Objective, Study
from fanin.sweep.workers import Pool

TASK = "fanin.sweep.foreign:Caller"


def read_foreign(sweeper: Any, arguments: Sequence[str], settings: Settings, fields: Mapping[str, Any]) -> Study:
    """The study of a foreign program: named after it, judged by what its function returns."""
    require(
        settings.pruner is None or settings.pruner["name"] == "wilcoxon",
        "hydra.sweeper.pruner",
        "a foreign program reports no value before its end, so nothing can be pruned; set none",
        (settings.pruner or {}).get("name"),
    )
    loader, config = sweeper.hydra_context.config_loader, sweeper.config
    space = grammar.parse(settings.params, overrides=arguments, loader=loader, seed=fields["seed"])
    hydra_overrides = list(config.hydra.overrides.hydra)
    composer = Composer(
        loader, config_name=config.hydra.job.config_name, fixed=[*hydra_overrides, *space.fixed], own=False
    )
    directions = fields["direction"]
    directions = [directions] if isinstance(directions, str) else list(directions)
    names = ["objective"] if len(directions) == 1 else [f"objective_{i}" for i in range(len(directions))]
    study = Study(
        name=fields["study"] or config.hydra.job.name,
        question=None,
        objectives=tuple(Objective(n, d) for n, d in zip(names, directions, strict=True)),
        replicates=1,
        space=space,
        composer=composer,
        base=composer.compose(),
        sampler=settings.sampler,
        pruner=None,
        budget=settings.budget,
        seed=fields["seed"],
        own=False,
    )
    check_study(study)
    return study


def open_foreign_pool(sweeper: Any, fields: Mapping[str, Any]) -> Pool:
    """Workers that can call the program's function."""
    threads = fields["threads"]
    context = {
        "hydra_context": sweeper.hydra_context,
        "config": sweeper.config,
        "task_function": sweeper.task_function,
        "singletons": Singleton.get_state(),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = fields["workers"] or max(1, cores // threads)
    return Pool(TASK, arguments={"pickled": cloudpickle.dumps(context)}, size=size, threads=threads)


class Caller:
    """A worker's handler: composes a job's configuration and calls the function, as Hydra's launchers do."""

    def __init__(self, *, pickled: bytes) -> None:
        setup_globals()
        self.context = cloudpickle.loads(pickled)
        Singleton.set_state(self.context["singletons"])

    def __call__(self, kind: str, payload: Any, channel: Any) -> None:
        assert kind == "run", kind
        folder, spec = Path(payload["folder"]), payload["spec"]
        with Spool(folder / "spool.jsonl") as log:
            log.append("start")
            try:
                values = self._call(spec)
            except BaseException as error:  # recorded, then raised on
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                reason = f"{type(error).__name__}: {error}"
                log.append("end", status=status, reason=reason, metrics={}, step=0, seconds=0.0)
                raise
            log.append("end", status="FINISHED", reason=None, metrics=values, step=0, seconds=0.0)

    def _call(self, spec: Mapping[str, Any]) -> dict[str, float]:
        master, hydra_context = self.context["config"], self.context["hydra_context"]
        overrides = [*spec["arguments"]]
        config = hydra_context.config_loader.load_sweep_config(master, overrides)
        with open_dict(config):
            config.hydra.job.id = spec["key"]
            config.hydra.job.num = spec["number"]
        HydraConfig.instance().set_config(config)
        done = run_job(
            hydra_context=hydra_context,
            task_function=self.context["task_function"],
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        assert done.status in (JobStatus.COMPLETED, JobStatus.FAILED), done.status
        return as_values(done.return_value, spec["objectives"])  # the property raises what the function raised


def as_values(returned: Any, names: Sequence[str]) -> dict[str, float]:
    """What the function returned, by objective. Raises ConfigError unless it is a number for each."""
    numbers = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    fits = len(numbers) == len(names) and all(hasattr(n, "__float__") for n in numbers)
    if not fits:
        raise ConfigError(
            f"the function must return {'a number' if len(names) == 1 else f'{len(names)} numbers'} "
            f"(one per hydra.sweeper.direction), got {returned!r}"
        )
    return {name: float(number) for name, number in zip(names, numbers, strict=True)}


def settings_of(sweeper: Any) -> dict[str, Any]:
    """The sweeper's fields that only a foreign program uses."""
    keys = ("study", "direction", "seed", "workers", "threads", "change")
    values = {key: sweeper.settings[key] for key in keys}
    return {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()}
