"""A sweep of fanin's own runs: read the study, check everything, coordinate, sum up."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader

from fanin.errors import ConfigError, require
from fanin.folders import declare_study
from fanin.sweep import grammar
from fanin.sweep.adaptive import SearchPlan
from fanin.sweep.compose import Composer
from fanin.sweep.display import Display, clock
from fanin.sweep.folder import Outcome, StudyFolder, archive
from fanin.sweep.grid import GridPlan
from fanin.sweep.plan import value_of
from fanin.sweep.schedule import Coordinator, Tally
from fanin.sweep.search import Search
from fanin.sweep.space import DISCRETE, Axis
from fanin.sweep.study import Budget, Study, Variant, hash_of, objectives, variant
from fanin.sweep.workers import Failure, Pool

TASK = "fanin.run:Trainer"
SHOWN = 5  # complaints shown when many configurations are refused
FLUSH = 30.0  # seconds the end of a sweep waits for MLflow; `fanin sync` ships what is left


@dataclass(frozen=True)
class Settings:
    """What the sweeper's configuration (hydra.sweeper) says."""

    params: Mapping[str, Any] | None
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None
    budget: Budget


def read_study(
    loader: ConfigLoader,
    *,
    config_name: str,
    hydra_overrides: Sequence[str],
    arguments: Sequence[str],
    settings: Settings,
) -> Study:
    """The study that a multirun's arguments describe. Raises ConfigError for whatever is wrong with it."""
    spaceless = grammar.parse(None, overrides=arguments, loader=loader)
    composer = Composer(loader, config_name=config_name, fixed=[*hydra_overrides, *spaceless.fixed])
    base = composer.compose()
    declared = base.config["study"]
    space = grammar.parse(
        settings.params,
        overrides=arguments,
        loader=loader,
        zipped=declared["zip"],
        points=declared["points"],
        when=declared["when"],
        seed=base.config["seed"],
    )
    if space.fixed != spaceless.fixed:  # params of one value are fixed, too
        composer = Composer(loader, config_name=config_name, fixed=[*hydra_overrides, *space.fixed])
        base = composer.compose()
    replicates = declared["replicates"]
    whole = isinstance(replicates, int) and replicates >= 1
    require(whole, "study.replicates", "must be a whole number >= 1", replicates)
    name = declared["name"] or _file_name(arguments) or f"adhoc-{hash_of([list(arguments)])}"
    study = Study(
        name=name,
        question=declared["question"],
        objectives=objectives(declared["metric"], declared["direction"]),
        replicates=replicates,
        space=space,
        composer=composer,
        base=base,
        sampler=settings.sampler,
        pruner=settings.pruner,
        racing=declared["racing"],
        budget=settings.budget,
    )
    grid = settings.sampler["name"] == "grid"
    require(len(study.objectives) == 1 or not grid, "study.metric", "a grid has one; several need a search", name)
    return study


def _file_name(arguments: Sequence[str]) -> str | None:
    return next((a.partition("=")[2] for a in arguments if a.lstrip("+").startswith("sweeps=")), None)


def sweep(study: Study, *, options: Any, project: Path) -> int:
    """Run, resume or (with options.dry_run) only show the study. Returns the exit code."""
    hardware = study.base.config["hardware"]
    _check_hardware(hardware)
    with _pool(hardware) as pool:
        grid = study.sampler["name"] == "grid"
        variants = grid_of(study) if grid else corners(study)
        check(variants, pool)
        _call(pool, "fetch", variants[0].composition.config)
        size_pool(pool, hardware, runs=len(variants) * study.replicates)
        if options.dry_run:
            return dry_run(study, variants, pool)
        return _run(study, variants if grid else None, pool, options=options, project=project)


def _run(study: Study, variants: list[Variant] | None, pool: Pool, *, options: Any, project: Path) -> int:
    path = project / ".fanin" / study.name
    if options.new and (aside := archive(path)):
        print(f"  the runs so far are put aside as {aside}")
    folder = StudyFolder(path)
    try:
        folder.admit(study.identity(), extend=options.extend)
        plan = make_plan(study, variants, folder, pool)
        declare_study(
            project,
            study.name,
            question=study.question or "",
            identity=folder.born,
            swept=[key.lstrip("+") for axis in study.space.axes for key in axis.keys],
            metric=study.objective.metric,
            direction=study.objective.direction,
            tags={"fanin.git": git_commit(project)},
        )
        with shipping(study, project) as shipper:
            return coordinate(study, plan, pool, folder, shipper)
    finally:
        folder.close()


# ---- before the first run ----


def grid_of(study: Study) -> list[Variant]:
    return [variant(study.composer, point) for point in study.space.grid()]


def corners(study: Study) -> list[Variant]:
    """Configurations that show whether a search can run at all: the default, each choice, both ends of each range."""
    points: list[dict[str, str]] = [{}]
    for axis in study.space.axes:
        points += [{**_parents(axis), **axis.assign(value)} for value in _ends(axis)]
    return [variant(study.composer, point) for point in points]


def _ends(axis: Axis) -> Sequence[str]:
    if axis.kind in DISCRETE:
        return axis.values
    assert axis.low is not None and axis.high is not None
    kind = int if axis.kind == "int" else float
    return [repr(kind(axis.low)), repr(kind(axis.high))]


def _parents(axis: Axis) -> dict[str, str]:
    return {condition.key: condition.values[0] for condition in axis.when}


def check(variants: Sequence[Variant], pool: Pool) -> None:
    """Build every planned configuration in a worker; raises ConfigError with what is wrong, once per reason."""
    complaints = _call(pool, "check", [v.composition.config for v in variants])
    reasons: dict[str, list[str]] = {}
    for one, complaint in zip(variants, complaints, strict=True):
        if complaint:
            reasons.setdefault(complaint, []).append(one.name)
    if not reasons:
        return
    lines = [f"{reason}\n    in {_some(names)}" if len(variants) > 1 else reason for reason, names in reasons.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    raise ConfigError("\n  ".join(lines[:SHOWN]) + more)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} variants, e.g. {names[0]}"


def _call(pool: Pool, kind: str, payload: Any) -> Any:
    """Have a worker do something now, and wait for it."""
    pool.fill(1)
    pool.free()[0].do(kind, payload, task=kind)
    while True:
        for event in pool.wait(1.0):
            event.worker.task = None
            if event.kind == "died":
                raise ConfigError(f"the worker that should {kind} the configuration was {event.payload}")
            if isinstance(event.payload, Failure):
                if event.payload.user:
                    raise ConfigError(event.payload.message)
                raise RuntimeError(event.payload.traceback)
            return event.payload


def _check_hardware(hardware: Mapping[str, Any]) -> None:
    for key in ("threads", "workers"):
        value = hardware[key]
        whole = (isinstance(value, int) and value >= 1) or (key == "workers" and value == "auto")
        require(whole, f"hardware.{key}", "must be a whole number >= 1" + " or auto" * (key == "workers"), value)
    share = hardware["gpus_per_run"]
    fits = isinstance(share, int | float) and (0 < share <= 1 or (share > 1 and share == int(share)))
    require(fits, "hardware.gpus_per_run", "must be a fraction of one GPU or a whole number of them", share)
    for key in ("patience", "checkpoint"):
        value = hardware[key]
        require(isinstance(value, int | float) and value >= 0, f"hardware.{key}", "must be seconds >= 0", value)


@contextmanager
def _pool(hardware: Mapping[str, Any]) -> Iterator[Pool]:
    threads = hardware["threads"]
    pool = Pool(TASK, arguments={"threads": threads}, size=1, threads=threads)
    try:
        yield pool
    finally:
        pool.close()


def size_pool(pool: Pool, hardware: Mapping[str, Any], *, runs: int) -> None:
    """Decide how many workers there are, and which GPUs each of them sees."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = hardware["workers"]
    devices = _call(pool, "devices", hardware["device"])
    if devices["device"] == "cuda":
        pool.environments = gpu_shares(devices["cuda"], hardware["gpus_per_run"])
        limit = len(pool.environments)
        require(wanted == "auto" or wanted <= limit, "hardware.workers", f"these GPUs serve at most {limit}", wanted)
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


def gpu_shares(count: int, per_run: float) -> list[dict[str, str]]:
    """CUDA_VISIBLE_DEVICES for each worker slot: 1 / per_run workers share a GPU, or each gets per_run of them."""
    if per_run <= 1:
        slots = [gpu for _ in range(int(1 / per_run + 1e-9)) for gpu in range(count)]
        return [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in slots]
    each = int(per_run)
    require(each <= count, "hardware.gpus_per_run", f"this machine has {count} GPUs", per_run)
    groups = [range(first, first + each) for first in range(0, count - each + 1, each)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(map(str, group))} for group in groups]


def dry_run(study: Study, variants: Sequence[Variant], pool: Pool) -> int:
    """Print the plan, its size and an estimate from a few measured batches of each architecture."""
    costs: dict[str, float] = {}
    total = 0.0
    for one in variants:
        config = one.composition.config
        key = hash_of([config[k] for k in ("model", "data", "optimizer", "batch_size", "stats")])
        if key not in costs:
            costs[key] = _call(pool, "estimate", config)
        total += costs[key] * config["epochs"] * study.replicates
    grid = study.sampler["name"] == "grid"
    if not grid:
        total *= (study.budget.trials or 1) / len(variants)
    print(f"study      {study.name}: {study.question or '(no question given)'}")
    for axis in study.space.axes:
        print(f"  axis     {axis.name}: {axis.text}")
    count = len(variants) if grid else study.budget.trials
    print(f"runs       {count or '?'} variants x {study.replicates} replicates = {(count or 0) * study.replicates or '?'}")
    print(f"judged by  {', '.join(f'{o.metric} ({o.direction})' for o in study.objectives)}")
    print(f"workers    {pool.size} x {study.base.config['hardware']['threads']} thread(s)")
    print(f"estimate   {clock(total / pool.size)} of training")
    for one in variants[:40] if grid else []:
        print(f"  {one.key}  {one.name}")
    if grid and len(variants) > 40:
        print(f"  ... and {len(variants) - 40} more")
    return 0


# ---- running ----


def make_plan(study: Study, variants: list[Variant] | None, folder: StudyFolder, pool: Pool) -> Any:
    judged = study.pruner is not None and study.pruner.get("name") != "none"
    if variants is not None and not judged:
        return GridPlan(study, variants, folder)
    search = Search(
        study.space,
        sampler=study.sampler,
        pruner=study.pruner,
        directions=[objective.direction for objective in study.objectives],
        storage=folder.path / "journal.log",
        name=study.name,
        seed=study.base.config["seed"],
        steps=study.base.config["epochs"],
        replicates=study.replicates,
    )
    if variants is not None:
        return GridPlan(study, variants, folder, judge=search)
    return SearchPlan(
        study, search, folder, compose=lambda values: variant(study.composer, values), check=lambda v: None
    )


def coordinate(study: Study, plan: Any, pool: Pool, folder: StudyFolder, shipper: Any) -> int:
    objective = study.objective
    display = Display(study.name, metric=objective.metric, sign=objective.sign, workers=pool.size)
    hardware = study.base.config["hardware"]
    coordinator = Coordinator(
        plan,
        pool,
        shipper=shipper,
        display=display,
        budget=study.budget,
        describe=lambda result: describe(result, study),
        sign=objective.sign,
        patience=hardware["patience"],
        checkpoint=hardware["checkpoint"],
    )
    folder.spool.append("start")
    shipper.nudge(folder.folder)
    display.start(total=plan.total, done=plan.known)
    try:
        tally = coordinator.run()
    finally:
        display.close()
    return conclude(study, plan, tally, folder, shipper)


def describe(result: Outcome, study: Study) -> tuple[str, float]:
    """An outcome in words, and its value."""
    if result.status != "FINISHED":
        return (result.reason or result.status.lower()), float("nan")
    value = value_of(result, study.objective, classes=study.classes)
    return ("diverged, counts as" if result.metrics.get("diverged") else result.reason or ""), value


def git_commit(project: Path) -> str | None:
    """The commit the project folder is at, with "+changes" when files differ from it; None outside git."""
    import subprocess

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


@contextmanager
def shipping(study: Study, project: Path) -> Iterator[Any]:
    """A thread that ships to the tracking store the configuration names, or nothing with tracking=none."""
    tracking = study.base.config["tracking"]
    if tracking["uri"] == "none":
        yield Unshipped()
        return
    from fanin.shipper import Shipper
    from fanin.tracking import Tracker

    shipper = Shipper(Tracker(project=project, uri=tracking["uri"], artifacts=tracking["artifacts"]))
    try:
        yield shipper
    finally:
        left = shipper.close(FLUSH)
        if left:
            print(f"fanin: {len(left)} runs are not fully in MLflow yet ({shipper.status}); `fanin sync` ships the rest", file=sys.stderr)


class Unshipped:
    """Stands for the shipper where nothing is shipped."""

    status = ""

    def nudge(self, folder: Any) -> None:
        """The record stays in the spool."""


def conclude(study: Study, plan: Any, tally: Tally, folder: StudyFolder, shipper: Any) -> int:
    """Print the answer, end the study's own record with it, and say how the sweep went."""
    table = summary(study, plan)
    print(table)
    status = {"interrupted": "KILLED"}.get(tally.ended, "FINISHED")
    folder.spool.append("end", status=status, reason=tally.ended, metrics={}, step=0, note=table)
    shipper.nudge(folder.folder)
    for name, why in list(tally.failures.items())[:SHOWN]:
        print(f"fanin: {name} failed: {why}", file=sys.stderr)
    if tally.ended == "interrupted":
        return 130
    return 1 if tally.failed else 0


def summary(study: Study, plan: Any) -> str:
    return str({k: v.metrics.get(study.objective.metric) for k, v in plan.results.items()})
