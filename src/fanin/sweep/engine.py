"""A sweep, of fanin's own runs or of a foreign program's, from a study to its answer."""

import json
import math
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fanin import exits
from fanin.folders import Folder, declare_study
from fanin.provenance import git_commit, versions
from fanin.shared.keeper import Keeper
from fanin.sweep import preflight
from fanin.sweep.checks import SHOWN, call, check, check_ground, check_held, check_tracking, corners, fetch, grid_of
from fanin.sweep.claims import as_tag, expect, settle
from fanin.sweep.delivery import Shipper, flush, shipping
from fanin.sweep.devices import crew, open_pool, size_pool
from fanin.sweep.display import Display
from fanin.sweep.folder import Outcome, StudyFolder
from fanin.sweep.plan import Plan, value_of
from fanin.sweep.planning import StudyPlan, make_plan
from fanin.sweep.pool import Pool
from fanin.sweep.predecessor import find_predecessor
from fanin.sweep.preview import show_plan
from fanin.sweep.schedule import INTERRUPTED, Coordinator, Tally
from fanin.sweep.sharing import open_state
from fanin.sweep.study import Study, Variant
from fanin.tracking import without_secrets

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
            return exits.DONE
        fetch(variants, pool)
        check_tracking(study, project)
        flown = preflight.fly(study, variants, pool)
        preflight.warn(study, flown)
        if study.racing:
            study = replace(study, racing={**study.racing, "resolution": resolution(study, pool)})
        listed = preflight.keep(study, flown) if grid else None
        with crew(pool, hardware, runs=len(variants) * study.replicates) as workers:
            return _run(study, listed, workers, options=options, project=project, source=source, flown=flown)
    finally:
        pool.close()


def sweep_foreign(study: Study, pool: Pool, *, options: Options, project: Path, best: Path | None = None) -> int:
    """Run or resume the sweep of a foreign Hydra program on workers that can call it. The best point is also
    written to the file `best` (YAML)."""
    try:
        source = find_predecessor(study, project=project)
        grid = study.sampler["name"] == "grid"
        variants = grid_of(study) if grid else corners(study)  # which raises for what cannot be composed
        listed = variants if grid else None
        return _run(study, listed, pool, options=options, project=project, source=source, best=best)
    finally:
        pool.close()


def resolution(study: Study, pool: Pool) -> float:
    """Accuracies come in steps of one image; 0 for a continuous metric."""
    if not study.objective.metric.endswith("accuracy"):
        return 0.0
    outline = call(pool, "outline", study.base.config)
    return 1 / (outline.test if study.objective.metric.startswith("test") else study.base.config["data"]["val"])


def _run(
    study: Study,
    listed: list[Variant] | None,
    pool: Pool,
    *,
    options: Options,
    project: Path,
    source: Path | None = None,
    best: Path | None = None,
    flown: preflight.Flown | None = None,
) -> int:
    """Take hold of the study, do what is missing, and say what came of it. `listed`: a grid's variants."""
    path = study.folder(project)
    with ExitStack() as held:
        state = held.enter_context(open_state(study, path))
        if aside := state.settle(new=options.new):
            print(f"  the runs so far are put aside as {aside.name}")
        folder = held.enter_context(closing(StudyFolder(path)))
        state.fetch(folder)
        points = None if listed is None else {variant.key for variant in listed}
        folder.admit(study.identity(), extend=options.extend, flags=study.flags, points=points)
        check_held(study, listed or [], folder.path / "runs")
        state.own()
        folder.bury()
        preflight.store(study, flown, folder)
        plan = make_plan(study, listed, folder, extend=options.extend, source=source)
        if plan.known and not study.own:
            print(f"  {plan.known} jobs were done before ({study.flags[1]} does them again)")
        declare(study, folder, project, command=options.command)
        with state.kept(plan.judge) as keeper, shipping(study, project, guard=keeper) as shipper:
            folder.spool.append("start")
            for left in (folder.folder, Folder(aside) if aside else None):
                if left:
                    shipper.catch_up(left)
            epochs = folder.epochs() if study.budget.epochs else 0
            tally = coordinate(study, plan, pool, shipper, epochs=epochs, keeper=keeper)
            if keeper and keeper.lost:  # what is in the folder now is another one's past
                print(f"fanin: stopped: {keeper.lost}", file=sys.stderr)
                return exits.FAILED
            conclude(study, plan, tally, folder, shipper, best=best)
        return exit_code(tally, new=options.new)


def conclude(
    study: Study, plan: StudyPlan, tally: Tally, folder: StudyFolder, shipper: Shipper, *, best: Path | None
) -> None:
    """Print the sweep's answer and record it as the end of the study, which an interrupted one gets without it. The
    best point is also written to the file `best` (YAML)."""
    for name, why in plan.refused.items():
        tally.failed, tally.failures[name] = tally.failed + 1, why
    if tally.ended == INTERRUPTED:  # MLflow hears of it while the answer is put together
        folder.spool.append("end", status="KILLED", reason=tally.ended, metrics={}, step=0)
        shipper.nudge(folder.folder, ended=True)
    from fanin.sweep.summary import as_data, summarise  # with pandas and scipy: no first epoch waits

    planned = plan.ended()
    verdicts = settle(study, folder, planned)
    answer = summarise(study, planned, tally, search=plan.search, verdicts=verdicts)
    print(answer.text)
    if tally.ended != INTERRUPTED:
        said = {"note": answer.markdown, "tags": answer.tags, "verdict": answer.verdict}
        folder.spool.append("end", status="FINISHED", reason=tally.ended, metrics={}, step=0, **said)
        shipper.nudge(folder.folder, ended=True)
    if best:
        best.write_text(yaml.safe_dump(as_data(study, answer.best), sort_keys=False))
    flush(shipper, tally)


def declare(study: Study, folder: StudyFolder, project: Path, *, command: str) -> None:
    """Write the study down for whoever ships it, with where its numbers come from."""
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


def coordinate(
    study: Study,
    plan: Plan,
    pool: Pool,
    shipper: Shipper,
    *,
    epochs: int = 0,
    every_epoch: bool = False,
    keeper: Keeper | None = None,
) -> Tally:
    """Play the plan on the workers of `pool`, shown as it goes."""
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


def exit_code(tally: Tally, *, new: bool = False) -> int:
    """The command's exit code, with what went wrong on stderr. `new`: --new was given, which once more would start
    over."""
    for name, why in list(tally.failures.items())[:SHOWN]:
        print(f"fanin: {name} failed: {why}", file=sys.stderr)
    if len(tally.failures) > SHOWN:
        print(f"fanin: and {len(tally.failures) - SHOWN} more failed", file=sys.stderr)
    if tally.ended == INTERRUPTED:
        without = " without --new" * new
        print(f"fanin: interrupted; the same command{without} goes on from here", file=sys.stderr)
        return exits.INTERRUPTED
    return exits.FAILED if tally.failed else exits.DONE
