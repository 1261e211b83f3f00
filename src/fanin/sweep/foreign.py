"""Multiruns of a foreign Hydra program: any @hydra.main function that returns a number (or several).

Same engine, same promises: no batch barrier, a dead job is retried, the same command goes on where it
stopped. The function travels to the workers by cloudpickle: a program's main module is not imported twice.
"""

import logging
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from omegaconf import OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from fanin.errors import ConfigError, require, unknown
from fanin.spool import Spool
from fanin.sweep import grammar
from fanin.sweep.channel import Channel
from fanin.sweep.compose import Composer
from fanin.sweep.devices import core_count
from fanin.sweep.reading import Settings, check_study
from fanin.sweep.study import Objective, Study
from fanin.sweep.workers import Pool

TASK = "fanin.sweep.foreign:Caller"
CHANGES = ("refuse", "extend", "new")
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's default: none was chosen

log = logging.getLogger(__name__)


def settings_of(sweeper: Any) -> dict[str, Any]:
    """The sweeper's fields that only a foreign program uses, checked. Raises ConfigError."""
    keys = ("study", "direction", "seed", "workers", "threads", "change", "warm_start")
    given: Any = OmegaConf.to_container(OmegaConf.create({key: sweeper.settings[key] for key in keys}))
    fields: dict[str, Any] = dict(given)
    for key in ("workers", "threads"):
        fits = fields[key] is None and key == "workers" or isinstance(fields[key], int) and fields[key] >= 1
        require(fits, f"hydra.sweeper.{key}", "must be a whole number >= 1", fields[key])
    if fields["change"] not in CHANGES:
        raise unknown("hydra.sweeper.change", fields["change"], CHANGES)
    directions = fields["direction"] if isinstance(fields["direction"], list) else [fields["direction"]]
    require(directions, "hydra.sweeper.direction", "must name at least one direction", directions)
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise unknown("hydra.sweeper.direction", direction, ("minimize", "maximize"))
    return fields | {"direction": directions}


def read_foreign(sweeper: Any, arguments: Sequence[str], settings: Settings, fields: Mapping[str, Any]) -> Study:
    """The study of a foreign program: named after it, judged by what its function returns."""
    _check_settings(sweeper, settings)
    loader, config = sweeper.hydra_context.config_loader, sweeper.config
    space = grammar.parse(settings.params, overrides=arguments, loader=loader, seed=fields["seed"])
    hydra_overrides = list(config.hydra.overrides.hydra)
    composer = Composer(
        loader, config_name=config.hydra.job.config_name, fixed=[*hydra_overrides, *space.fixed], own=False
    )
    directions = fields["direction"]
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
        warm_start=fields["warm_start"],
        own=False,
    )
    check_study(study)
    return study


def _check_settings(sweeper: Any, settings: Settings) -> None:
    rule = "a foreign program reports no value before its end, so nothing can be pruned; set none"
    require(settings.pruner is None, "hydra.sweeper.pruner", rule, (settings.pruner or {}).get("name"))
    rule = "the epochs of a foreign program are not known; set max_trials or timeout"
    require(settings.budget.epochs is None, "hydra.sweeper.max_epochs", rule, settings.budget.epochs)
    launcher = OmegaConf.select(sweeper.config, "hydra.launcher._target_")
    rule = "fanin's sweepers run jobs on workers of their own (hydra.sweeper.workers); choose no launcher"
    require(launcher in (None, LAUNCHER), "hydra/launcher", rule, launcher)


def open_results(sweeper: Any) -> Path:
    """The sweep's folder in Hydra's sense, with multirun.yaml in it, as Hydra's own sweepers make it."""
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, folder / "multirun.yaml")
    return folder


def open_foreign_pool(sweeper: Any, fields: Mapping[str, Any]) -> Pool:
    """Workers that can call the program's function."""
    threads = fields["threads"]
    size = fields["workers"] or max(1, core_count() // threads)
    return Pool(TASK, arguments={"pickled": _pickle(sweeper)}, size=size, threads=threads)


def _pickle(sweeper: Any) -> bytes:
    """What a worker needs, with the OmegaConf resolvers that the program has registered at its start."""
    context = {
        "hydra_context": sweeper.hydra_context,
        "config": sweeper.config,
        "task_function": sweeper.task_function,
        "singletons": Singleton.get_state(),
        "resolvers": {k: v for k, v in BaseContainer._resolvers.items() if not k.startswith("oc.")},
    }
    try:
        return cloudpickle.dumps(context)
    except Exception as error:  # whatever an object's own __reduce__ may raise
        name = getattr(sweeper.task_function, "__name__", "the function")
        raise ConfigError(
            f"{name} cannot be sent to the workers: {type(error).__name__}: {error}; make what cannot be "
            "pickled (locks, connections, open files) inside the function, not at the top of the program"
        ) from error


class Caller:
    """A worker's handler: composes a job's configuration and calls the function, as Hydra's launchers do."""

    def __init__(self, *, pickled: bytes) -> None:
        setup_globals()
        self.context = cloudpickle.loads(pickled)
        Singleton.set_state(self.context["singletons"])
        BaseContainer._resolvers.update(self.context["resolvers"])
        _show_in_main(self.context["task_function"])

    def __call__(self, kind: str, payload: Any, channel: Channel) -> None:
        assert kind == "run", kind
        folder, spec = Path(payload["folder"]), payload["spec"]
        began = time.monotonic()
        with Spool(folder / "spool.jsonl") as spool:
            spool.append("start")
            try:
                with channel.interruptible():
                    metrics = self._call(spec)
            except BaseException as error:  # recorded, then raised on: an interruption is not an Exception
                seconds = time.monotonic() - began
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                spool.append("end", status=status, reason=_reason(error), metrics={}, step=0, seconds=seconds)
                raise
            seconds = time.monotonic() - began
            spool.append("end", status="FINISHED", reason=None, metrics=metrics, step=0, seconds=seconds)

    def _call(self, spec: Mapping[str, Any]) -> dict[str, float]:
        hydra_context = self.context["hydra_context"]
        loader, master = hydra_context.config_loader, self.context["config"]
        config = loader.load_sweep_config(master, list(spec["arguments"]))
        with open_dict(config):
            config.hydra.job.id = spec["key"]
            config.hydra.job.num = spec["number"]
        HydraConfig.instance().set_config(config)
        try:
            done = run_job(
                hydra_context=hydra_context,
                task_function=self.context["task_function"],
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            returned = done.return_value  # raises what the function raised
        except SystemExit as error:  # sys.exit() in a job ends the job
            raise RuntimeError(f"the job left with sys.exit({error.code!r})") from error
        except Exception as error:
            log.error("job %d failed\n%s", spec["number"], _traceback(error))
            raise
        return as_metrics(returned, spec["objectives"])


def _show_in_main(function: Any) -> None:
    """Put the program's names where pickle looks for them: a job may save an object of one of its classes."""
    if getattr(function, "__module__", None) == "__main__" and hasattr(function, "__globals__"):
        vars(sys.modules["__main__"]).update(function.__globals__)


def _traceback(error: Exception) -> str:
    """From the program's own frames on: what lies above is Hydra and this file."""
    frames = traceback.extract_tb(error.__traceback__)
    above = (__file__, run_job.__code__.co_filename)
    ours = [i for i, frame in enumerate(frames) if frame.filename in above]
    kept = frames[max(ours, default=-1) + 1 :]
    return "".join([*traceback.format_list(kept or frames), *traceback.format_exception_only(error)]).rstrip()


def _reason(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return line if isinstance(error, ConfigError) else f"{type(error).__name__}: {line}".rstrip(": ")


def as_metrics(returned: Any, names: Sequence[str]) -> dict[str, float]:
    """What the function returned, by objective; `diverged` marks numbers that are not finite. Raises
    ConfigError unless there is a number for each."""
    plain = returned.tolist() if hasattr(returned, "tolist") else returned  # NumPy's and torch's
    numbers = list(plain) if isinstance(plain, tuple | list) else [plain]
    if len(numbers) != len(names) or not all(hasattr(number, "__float__") for number in numbers):
        several = f"{len(names)} numbers, one for each hydra.sweeper.direction"
        wanted = "a number" if len(names) == 1 else several
        raise ConfigError(f"the function must return {wanted}; it returned {returned!r}")
    values = {name: float(number) for name, number in zip(names, numbers, strict=True)}
    return values if all(map(math.isfinite, values.values())) else values | {"diverged": 1.0}
