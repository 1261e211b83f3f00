"""Studies without training: plans are played with made-up outcomes, and killed wherever a test wants."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from fanin.spool import Spool
from fanin.sweep.compose import Composition
from fanin.sweep.folder import StudyFolder, outcome
from fanin.sweep.grammar import parse
from fanin.sweep.plan import Job
from fanin.sweep.study import Budget, Objective, Study, Variant

METRIC = "val/accuracy"
BASE = {"epochs": 4, "seed": 0, "data": {"classes": 10}, "tracking": {"uri": "none"}, "a": 1, "b": 1, "c": "x"}


class Overlay:
    """A composer of flat configurations: overrides replace keys of BASE."""

    def compose(self, overrides: Any = ()) -> Composition:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return Composition(config=BASE | {one.key_or_group: one.value() for one in parsed}, choices={})


class Edited(Overlay):
    """A composer whose choice a=2 was edited since: it sets b, too."""

    def compose(self, overrides: Any = ()) -> Composition:
        made = super().compose(overrides)
        return replace(made, config=made.config | ({"b": 9} if made.config["a"] == 2 else {}))


def make_study(params: Mapping[str, Any], **fields: Any) -> Study:
    """A study of `params`; zipped, points and when are those of the grammar, the rest are Study's fields."""
    structure = {key: fields.pop(key) for key in ("zipped", "points", "when") if key in fields}
    composer: Any = Overlay()
    settings: dict[str, Any] = {
        "name": "study",
        "question": None,
        "objectives": (Objective(METRIC, "maximize"),),
        "replicates": 1,
        "sampler": {"name": "grid"},
        "budget": Budget(),
    } | fields
    space = parse(params, **structure)
    return Study(space=space, composer=composer, base=composer.compose(), **settings)


def grid(study: Study) -> list[Variant]:
    return [study.variant(point) for point in study.space.grid()]


@dataclass
class Result:
    """How a made-up run ends: after its `curve` of metrics, one an epoch."""

    curve: list[float]
    status: str = "FINISHED"
    reason: str | None = None


@dataclass
class Play:
    """Hands a plan's jobs to made-up workers. `train(values, replicate)` says how a run ends; `workers` jobs
    are open at a time, of which the last one begun ends first with `late=True`."""

    train: Callable[[dict[str, Any], int], float | list[float] | Result]
    workers: int = 1
    late: bool = False
    names: list[str] = field(default_factory=list)  # of the runs begun, in order
    told: list[float | None] = field(default_factory=list)  # what the plan said of the runs that ended

    def run(self, plan: Any, *, stop: int | None = None) -> "Play":
        """Until the plan is done, or `stop` more runs have ended: then the coordinator dies."""
        opened: list[Job] = []
        ended = 0
        while stop is None or ended < stop:
            while len(opened) < self.workers and (job := plan.next()) is not None:
                self.names.append(job.name)
                opened.append(job)
            if not opened:
                break
            job = opened.pop(-1 if self.late else 0)
            self._work(plan, job)
            result = outcome(job.folder)
            assert result is not None
            self.told.append(plan.finish(job, result))
            ended += 1
        for job in opened:  # begun, and recorded nothing yet
            with Spool(job.folder / "spool.jsonl") as spool:
                spool.append("start")
        return self

    def _work(self, plan: Any, job: Job) -> None:
        made = self.train({k: v for k, v in job.spec["config"].items() if k in "abc"}, job.replicate)
        made = made if isinstance(made, Result) else Result(made if isinstance(made, list) else [made])
        with Spool(job.folder / "spool.jsonl") as spool:
            spool.append("start")
            for epoch, value in enumerate([0.0, *made.curve]):
                metrics = {METRIC: value} | ({"diverged": 1.0} if math.isnan(value) else {})
                spool.append("epoch", epoch=epoch, metrics=metrics)
                if verdict := plan.report(job, {"epoch": epoch, "metrics": metrics}):
                    made.status, made.reason = "KILLED", f"pruned: {verdict}"
                    break
            spool.append("end", status=made.status, reason=made.reason, metrics={}, seconds=1.0)


def open_folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / ".fanin" / "study")
