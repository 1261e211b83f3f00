"""From a study to its plan: the grid's own, a search's, or a grid whose runs a search judges."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fanin.sweep.folder import StudyFolder
from fanin.sweep.grid import GridPlan
from fanin.sweep.plan import Plan
from fanin.sweep.predecessor import queue_best
from fanin.sweep.study import Study, Variant

if TYPE_CHECKING:  # it comes with Optuna, which a plain grid can do without
    from fanin.sweep.search import Search


class StudyPlan(Plan, Protocol):
    """What a sweep asks of its plan, besides what the coordinator does."""

    @property
    def search(self) -> "Search | None":
        """The search that proposes the points, if one does."""
        ...

    @property
    def judge(self) -> "Search | None":
        """The search that has the runs as its trials, whoever proposed them."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """Variant name -> why its configuration could not be run."""
        ...


def make_plan(
    study: Study,
    variants: list[Variant] | None,
    folder: StudyFolder,
    *,
    extend: bool,
    source: Path | None = None,
) -> StudyPlan:
    """The plan of the `variants` that a grid lists, or of a search where they are None. A search first tries the
    default configuration, then the best points of the study in the folder `source`."""
    if variants is not None:
        judge = open_search(study, folder, extend=extend) if study.pruner else None
        return GridPlan(study, variants, folder, judge=judge)
    from fanin.sweep.adaptive import SearchPlan

    search = open_search(study, folder, extend=extend, defaults=study.default)
    if source:
        queue_best(search, source)
    return SearchPlan(study, search, folder, compose=study.variant)


def open_search(
    study: Study, folder: StudyFolder, *, extend: bool = False, defaults: Mapping[str, str] | None = None
) -> "Search":
    """The study's search, begun or gone on with in its folder; `extend` and `defaults` as Search has them."""
    from fanin.sweep.search import Search

    return Search(
        study.space,
        sampler=study.sampler,
        pruner=study.pruner,
        directions=[objective.direction for objective in study.objectives],
        storage=folder.path / "journal.log",
        name=study.name,
        seed=study.seed,
        defaults=defaults,
        steps=study.base.config["epochs"] if study.own else None,
        replicates=study.replicates,
        extend=extend,
    )
