"""One run of a study's base configuration: `fanin train`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanin import exits
from fanin.sweep.checks import check, check_ground, check_tracking, fetch
from fanin.sweep.delivery import flush, shipping
from fanin.sweep.devices import crew, open_pool, size_pool
from fanin.sweep.engine import Options, coordinate, declare, exit_code
from fanin.sweep.folder import Outcome, StudyFolder, stamp
from fanin.sweep.plan import Job, Planned, Queue, plan_job
from fanin.sweep.preview import show_run
from fanin.sweep.study import Study, Variant
from fanin.sweep.workers import Pool


def train(study: Study, *, options: Options, project: Path, called: str = "") -> int:
    """One run, trained anew each time it is asked for, and called so (or by its model). Returns the exit code."""
    check_ground(project)
    hardware = study.base.config["hardware"]
    pool = open_pool(hardware)
    try:
        one = study.variant({})
        check([one], pool, study=study)
        size_pool(pool, hardware, runs=1)
        if options.dry_run:
            show_run(one, study, pool)
            return exits.DONE
        fetch([one], pool)
        check_tracking(study, project)
        return _train(study, one, pool, options=options, project=project, called=called)
    finally:
        pool.close()


def _train(study: Study, one: Variant, pool: Pool, *, options: Options, project: Path, called: str) -> int:
    folder = StudyFolder(study.folder(project))
    declare(study, folder, project, command=options.command)
    job = plan_job(study, one, one.composition.config["replicate"], folder, again=stamp(), called=called)
    folder.bury()
    folder.spool.append("start")
    folder.spool.append("end", status="FINISHED", reason=None, metrics={}, step=0)
    folder.close()  # a second training may start beside this one: each run has its own spool
    plan = SinglePlan(job)
    with shipping(study, project) as shipper:
        shipper.catch_up(folder.folder)
        with crew(pool, study.base.config["hardware"], runs=1) as workers:
            tally = coordinate(study, plan, workers, shipper, every_epoch=True)
        flush(shipper, tally)
    if plan.result:
        print(closing_line(job, plan.result, tracked=study.base.config["tracking"]["uri"] != "none"))
    return exit_code(tally)


def closing_line(job: Job, result: Outcome, *, tracked: bool) -> str:
    """What a single run came to, and where to look further."""
    shown = [f"{key} {result.metrics[key]:.4f}" for key in ("test/accuracy", "test/loss") if key in result.metrics]
    files = f"its files are in {os.path.relpath(job.folder)}"
    where = f"`fanin ui` shows it: {job.name} in train" if tracked else files
    return "  " + "  ".join([*shown, where])


class SinglePlan:
    """One run, once."""

    reports = False
    total: int | None = 1
    known = 0
    best = None

    def __init__(self, job: Job) -> None:
        self.result: Outcome | None = None
        self._job = job
        self._queue = Queue()
        self._queue.add(job)

    @property
    def done(self) -> bool:
        return self._queue.empty

    def next(self) -> Job | None:
        return self._queue.take()

    def report(self, job: Job, record: Mapping[str, Any]) -> str | None:
        return None

    def finish(self, job: Job, result: Outcome) -> float | None:
        self._queue.settle(job)
        self.result = result
        return None

    def retry(self, job: Job) -> bool:
        return self._queue.retry(job)

    def ended(self) -> list[Planned]:
        variant = self._job.variant
        return [Planned(variant, self._job.replicate, self.result)] if self.result else []
