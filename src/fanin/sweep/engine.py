"""A sweep of fanin's own runs, from a study to its answer."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fanin.folders import MEMORY, Folder, declare_study
from fanin.provenance import git_commit, versions
from fanin.shared.keeper import Keeper
from fanin.sweep import preflight
from fanin.sweep.checks import SHOWN, call, check, check_ground, check_tracking, corners, fetch, grid_of
from fanin.sweep.claims import as_tag, expect, settle
from fanin.sweep.devices import crew, open_pool, size_pool
from fanin.sweep.display import Display
from fanin.sweep.folder import Outcome, StudyFolder, stamp
from fanin.sweep.grid import GridPlan
from fanin.sweep.plan import Job, SinglePlan, plan_job, value_of
from fanin.sweep.pool import Pool
from fanin.sweep.predecessor import find_predecessor, queue_best
from fanin.sweep.preview import show_plan, show_run
from fanin.sweep.schedule import INTERRUPTED, Coordinator, Tally
from fanin.sweep.sharing import open_state
from fanin.sweep.study import Study, Variant
from fanin.tracking import without_secrets

FLUSH = 30.0  # seconds the end of a sweep waits for MLflow; `fanin sync` ships what is left
LEAVE = 7.0  # seconds from the signal that interrupts a sweep to its end, MLflow or not
AT_ONCE = 0.5
DONE, FAILED, EXIT_INTERRUPTED = 0, 1, 130
NO_LIMITS = {"patience": math.inf, "checkpoint": math.inf}  # of a foreign program, which reports nothing


@dataclass(frozen=True)
class Options:
    """The command's flags, and the command itself as it can be typed again."""

    dry_run: bool = False
    extend: bool = False
    new: bool = False
    command: str = ""


def sweep(study: Study, *, options: Options, project: Path) -> int:
    """Run, resume or (options.dry_run) only show the study. Returns the exit code."""
    check_ground(project)
    source = find_predecessor(study, project=project)
    hardware = study.base.config["hardware"]
    pool = open_pool(hardware)
    try:
        grid = study.sampler["name"] == "grid"
        variants = grid_of(study) if grid else corners(study)
        study = expect(study, variants)
        check(variants, pool, study=study)
        size_pool(pool, hardware, runs=len(variants) * study.replicates)
        if options.dry_run:
            show_plan(study, variants, pool, project=project)
            return DONE
        fetch(variants, pool)
        check_tracking(study, project)
        flown = preflight.fly(study, variants, pool)
        preflight.warn(study, flown)
        if study.racing:
            study = replace(study, racing={**study.racing, "resolution": resolution(study, pool)})
        listed = preflight.keep(study, flown) if grid else None
        where: Mapping[str, Any] = {"options": options, "project": project, "source": source}
        with crew(pool, hardware, runs=len(variants) * study.replicates) as workers:
            return _run(study, listed, workers, **where, flown=flown)
    finally:
        pool.close()


def sweep_foreign(study: Study, pool: Pool, *, options: Options, project: Path, best: Path | None = None) -> int:
    """Run or resume the sweep of a foreign Hydra program on workers that can call it. The best point is also
    written to the file `best` (YAML)."""
    try:
        source = find_predecessor(study, project=project)
        grid = study.sampler["name"] == "grid"
        variants = grid_of(study) if grid else corners(study)  # which raises for what cannot be composed
        return _run(
            study,
            variants if grid else None,
            pool,
            options=options,
            project=project,
            source=source,
            best=best,
        )
    finally:
        pool.close()


def train(study: Study, *, options: Options, project: Path) -> int:
    """One run of the study's base configuration. Trained anew each time it is asked for."""
    check_ground(project)
    hardware = study.base.config["hardware"]
    pool = open_pool(hardware)
    try:
        one = study.variant({})
        check([one], pool, study=study)
        size_pool(pool, hardware, runs=1)
        if options.dry_run:
            show_run(one, study, pool)
            return DONE
        fetch([one], pool)
        check_tracking(study, project)
        folder = StudyFolder(project / MEMORY / study.name)
        declare(study, folder, project, command=options.command)
        job = plan_job(study, one, one.composition.config["replicate"], folder, again=stamp())
        folder.bury()
        folder.spool.append("start")
        folder.spool.append("end", status="FINISHED", reason=None, metrics={}, step=0)
        folder.close()  # a second training may start beside this one: each run has its own spool
        with shipping(study, project) as shipper:
            shipper.catch_up(folder.folder)
            plan = SinglePlan(job)
            with crew(pool, hardware, runs=1) as workers:
                tally = coordinate(study, plan, workers, shipper, every_epoch=True)
            flush(shipper, tally)
        if plan.result:
            print(closing_line(job, plan.result, tracked=study.base.config["tracking"]["uri"] != "none"))
        return exit_code(tally)
    finally:
        pool.close()


def closing_line(job: Job, result: Outcome, *, tracked: bool) -> str:
    """What a single run came to, and where to look further."""
    shown = [f"{key} {result.metrics[key]:.4f}" for key in ("test/accuracy", "test/loss") if key in result.metrics]
    files = f"its files are in {os.path.relpath(job.folder)}"
    where = f"`fanin ui` shows it: {job.name} in train" if tracked else files
    return "  " + "  ".join([*shown, where])


def resolution(study: Study, pool: Pool) -> float:
    """Accuracies come in steps of one image; 0 for a continuous metric."""
    if not study.objective.metric.endswith("accuracy"):
        return 0.0
    outline = call(pool, "outline", study.base.config)
    return 1 / (outline.test if study.objective.metric.startswith("test") else study.base.config["data"]["val"])


def _run(
    study: Study,
    variants: list[Variant] | None,
    pool: Pool,
    *,
    options: Options,
    project: Path,
    source: Path | None = None,
    best: Path | None = None,
    flown: preflight.Flown | None = None,
) -> int:
    path = project / MEMORY / study.name
    with ExitStack() as last:
        state = last.enter_context(open_state(study, path))
        if aside := state.settle(new=options.new):
            print(f"  the runs so far are put aside as {aside.name}")
        folder = last.enter_context(closing(StudyFolder(path)))
        state.fetch(folder)
        points = None if variants is None else {variant.key for variant in variants}
        folder.admit(study.identity(), extend=options.extend, flags=study.flags, points=points)
        state.own()
        folder.bury()
        preflight.store(study, flown, folder)
        plan = make_plan(study, variants, folder, extend=options.extend, source=source)
        if plan.known and not study.own:
            print(f"  {plan.known} jobs were done before ({study.flags[1]} does them again)")
        search = getattr(plan, "search", None) or getattr(plan, "judge", None)
        declare(study, folder, project, command=options.command)
        with state.kept(search) as keeper, shipping(study, project, guard=keeper) as shipper:
            folder.spool.append("start")
            for left in (folder.folder, Folder(aside) if aside else None):
                if left:
                    shipper.catch_up(left)
            epochs = folder.epochs() if study.budget.epochs else 0
            tally = coordinate(study, plan, pool, shipper, epochs=epochs, keeper=keeper)
            if keeper and keeper.lost:  # what is in the folder now is another one's past
                print(f"fanin: stopped: {keeper.lost}", file=sys.stderr)
                return FAILED
            for name, why in getattr(plan, "refused", {}).items():
                tally.failed, tally.failures[name] = tally.failed + 1, why
            if tally.ended == INTERRUPTED:  # MLflow hears of it while the answer is put together
                folder.spool.append("end", status="KILLED", reason=tally.ended, metrics={}, step=0)
                shipper.nudge(folder.folder, ended=True)
            from fanin.sweep.summary import as_data, summarise  # with pandas and scipy: no first epoch waits

            planned = plan.ended()
            verdicts = settle(study, folder, planned)
            answer = summarise(study, planned, tally, search=getattr(plan, "search", None), verdicts=verdicts)
            print(answer.text)
            if tally.ended != INTERRUPTED:
                end: dict[str, Any] = {"status": "FINISHED", "reason": tally.ended, "metrics": {}, "step": 0}
                folder.spool.append("end", **end, note=answer.markdown, tags=answer.tags, verdict=answer.verdict)
                shipper.nudge(folder.folder, ended=True)
            if best:
                best.write_text(yaml.safe_dump(as_data(study, answer.best), sort_keys=False))
            flush(shipper, tally)
        return exit_code(tally)


def declare(study: Study, folder: StudyFolder, project: Path, *, command: str) -> None:
    tags = {
        "fanin.git": git_commit(project),
        "fanin.command": without_secrets(command),
        "fanin.versions": json.dumps(versions()),
        "fanin.racing": json.dumps(study.race) if study.race else None,
    }
    declare_study(
        project,
        study.name,
        question=study.question or "",
        identity=folder.born,
        swept=study.swept,
        metric=study.objective.metric,
        direction=study.objective.direction,
        replicates=study.replicates,
        criteria=as_tag(study),
        tags={key: text for key, text in tags.items() if text},
    )


def make_plan(
    study: Study,
    variants: list[Variant] | None,
    folder: StudyFolder,
    *,
    extend: bool,
    source: Path | None = None,
) -> Any:
    """The grid's own plan, or a search's; a grid with a pruner has Optuna as its judge. A search first tries
    the default configuration, then the best points of the study in the folder `source`."""
    if variants is not None and study.pruner is None:
        return GridPlan(study, variants, folder)
    from fanin.sweep.adaptive import SearchPlan  # with Optuna, which a plain grid can do without
    from fanin.sweep.search import Search

    search = Search(
        study.space,
        sampler=study.sampler,
        pruner=study.pruner,
        directions=[objective.direction for objective in study.objectives],
        storage=folder.path / "journal.log",
        name=study.name,
        seed=study.seed,
        defaults=study.default if variants is None else None,
        steps=study.base.config["epochs"] if study.own else None,
        replicates=study.replicates,
        extend=extend,
    )
    if variants is not None:
        return GridPlan(study, variants, folder, judge=search)
    if source:
        queue_best(search, source)
    return SearchPlan(study, search, folder, compose=study.variant)


def coordinate(
    study: Study,
    plan: Any,
    pool: Pool,
    shipper: Any,
    *,
    epochs: int = 0,
    every_epoch: bool = False,
    keeper: Keeper | None = None,
) -> Tally:
    objective = study.objective
    hardware = study.base.config["hardware"] if study.own else NO_LIMITS
    display = Display(
        study.name, metric=objective.metric, sign=objective.sign, workers=pool.size, every_epoch=every_epoch
    )
    coordinator = Coordinator(
        plan,
        pool,
        shipper=shipper,
        display=display,
        budget=study.budget,
        describe=lambda result: describe(result, study),
        metric=objective.metric,
        sign=objective.sign,
        patience=hardware["patience"],
        checkpoint=hardware["checkpoint"],
        epochs=epochs,
        lost=lambda: keeper.lost if keeper else "",
    )
    display.start(total=plan.total, done=plan.known)
    try:
        return coordinator.run()
    finally:
        display.close()


def describe(result: Outcome, study: Study) -> tuple[str, float]:
    """An outcome in words, and its value."""
    if result.status != "FINISHED":
        return (result.reason or result.status.lower()), float("nan")
    value = value_of(result, study.objective, classes=study.classes)
    if result.metrics.get("diverged"):
        return "diverged, counts as" + " the worst" * (not math.isfinite(value)), value
    return result.reason or "", value


def exit_code(tally: Tally) -> int:
    for name, why in list(tally.failures.items())[:SHOWN]:
        print(f"fanin: {name} failed: {why}", file=sys.stderr)
    if tally.ended == INTERRUPTED:
        print("fanin: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return FAILED if tally.failed else DONE


@contextmanager
def shipping(study: Study, project: Path, *, guard: Keeper | None = None) -> Iterator[Any]:
    """A thread that ships to the tracking store the configuration names, or nothing with tracking=none; what
    is shipped, the `guard` has seen."""
    tracking = study.base.config["tracking"] if study.own else {"uri": "none"}
    if tracking["uri"] == "none":
        yield Unshipped()
        return
    from fanin.shipper import Shipper
    from fanin.tracking import Tracker

    tracker = Tracker(project=project, uri=tracking["uri"], artifacts=tracking["artifacts"])
    shipper = Shipper(tracker, guard=guard)
    try:
        yield shipper
    finally:
        shipper.close(AT_ONCE)


def flush(shipper: Any, tally: Tally) -> None:
    """Wait until MLflow has everything, but not for ever."""
    patience = FLUSH
    if tally.signalled is not None:
        patience = max(AT_ONCE, tally.signalled + LEAVE - time.monotonic())
    left = shipper.close(patience)
    if left:
        why = f" ({shipper.status})" if shipper.status else ""
        print(
            f"fanin: {len(left)} runs are not fully in MLflow yet{why}; `fanin sync` ships the rest",
            file=sys.stderr,
        )


class Unshipped:
    """Stands for the shipper where nothing is shipped."""

    status = ""

    def nudge(self, folder: Any, *, ended: bool = False) -> None:
        """The record stays in the spool."""

    def catch_up(self, study: Any) -> None:
        """So does what earlier sessions left."""

    def close(self, timeout: float) -> list[Any]:
        return []
