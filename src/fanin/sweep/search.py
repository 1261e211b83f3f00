"""The search of a study: what to try next, and what to stop, by Optuna's ask and tell.

One coordinator process owns the search and its journal file. Whoever reopens the journal gets the trials that
a killed coordinator left open back from `reap`, with their values, and goes on as if nothing had happened.

A point that comes up again is not handed out again: a run is a function of its configuration and seed, so the
earlier result is told to Optuna as it is and the sampler is asked once more. A search of finitely many points
therefore ends (`ask` returns None) when every one of them has been tried.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from fanin.sweep.excerpt import Excerpt
from fanin.sweep.journal import ASKED, best_points, open_study
from fanin.sweep.parameters import distribution, distributions, every, params_of, pick, suggest, values_of
from fanin.sweep.pruners import build_pruner
from fanin.sweep.samplers import build_sampler, check_sampler, excerpts_for, trial_seed
from fanin.sweep.space import LIMIT, Space
from fanin.sweep.trial import Trial, pareto_front

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
NAMES = {code: name for name, code in STATES.items()}
REPEATS = 5  # draws of known points in a row before a new one is picked at random
TRIES = 1000  # random picks before the points are gone through one by one
# Our marks on Optuna's trials (user attributes): it repeats an earlier one; its point was given, not drawn;
# the pruner said stop; its value is the mean over the replicates it had before it was pruned.
REPEAT, GIVEN, PRUNE, ESTIMATE = "fanin.repeats", "fanin.given", "fanin.prune", "fanin.estimate"
WARM = "fanin.warm_start"  # and on its study: where the first points came from


class Search:
    """Ask for variants, report on them, tell how they ended."""

    def __init__(
        self,
        space: Space,
        *,
        sampler: Mapping[str, Any],
        pruner: Mapping[str, Any] | None = None,
        directions: Sequence[str],
        storage: Path,
        name: str,
        seed: int,
        defaults: Mapping[str, str] | None = None,
        steps: int | None = None,
        replicates: int = 1,
        extend: bool = False,
    ) -> None:
        """Open or create the search `name` in the journal file `storage`.

        `defaults`: the default configuration (key -> text), tried first. `steps`: how many values a trial
        reports (epochs; None for none). `replicates`: what a trial's value is the mean of. With `extend`, a
        journal of a smaller space is taken over. Raises ConfigError for everything that does not fit
        together.
        """
        # What a user must know, we say; Optuna's hints, of packages that would be faster, would tear the display.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.seed = space, seed
        self.sampler, self.directions = dict(sampler), tuple(directions)
        check_sampler(sampler, space, objectives=len(self.directions), seed=seed)
        self._excerpts = excerpts_for(sampler, directions=self.directions)
        judge = build_pruner(pruner, steps=steps, replicates=replicates, objectives=len(self.directions))
        self._by_replicates = isinstance(judge, optuna.pruners.WilcoxonPruner)
        described = {axis.name: axis.text for axis in space.axes}
        self.study, self._storage, self._journal = open_study(
            storage,
            name,
            directions=self.directions,
            space=described,
            kinds=distributions(space),
            extend=extend,
        )
        self.study.pruner = judge or optuna.pruners.NopPruner()
        self._study_id = self._storage.get_study_id_from_name(name)
        self._known: dict[frozenset[tuple[str, str]], int] = {}
        if (trial_id := self._journal.undecided) is not None:
            self._judge(trial_id)
        self._left = self._reopen()
        self.asked = len(self.trials)  # how many trials were handed out: what a budget of trials counts
        # Repeats since then: an `ask` that was killed goes on where it was.
        newest = itertools.takewhile(lambda trial: REPEAT in trial.user_attrs, reversed(self._frozen()))
        self._repeats = sum(1 for _ in newest)
        if not self._frozen() and defaults:
            self.enqueue([defaults])

    # Asking

    def ask(self, values: Mapping[str, str] | None = None) -> Trial | None:
        """The next trial to run; None when the space has no untried point left. With `values`, that very
        point, tried before or not (a plan of one's own, judged by this search's pruner; or a failure to
        retry)."""
        if values is not None:
            return self._add(params_of(values, self.space))
        while self._repeats <= REPEATS:
            trial = self._draw()
            earlier = self._known.setdefault(_identity(trial.values), trial.number)
            if earlier == trial.number:
                self._repeats, self.asked = 0, self.asked + 1
                return trial
            self._repeat(trial.number, earlier)
            self._repeats += 1
        self._repeats = 0
        params = self._untried()
        return None if params is None else self._add(params)

    def enqueue(self, points: Iterable[Mapping[str, str]]) -> int:
        """Try these points (key -> text) before any the sampler draws; returns how many were queued. Keys
        that are no axis, and values outside their axis, are drawn by the sampler; a point with none left is
        skipped."""
        queued = [trial.system_attrs.get("fixed_params") for trial in self._frozen(TrialState.WAITING)]
        before = len(queued)
        for point in points:
            params = params_of(point, self.space)
            known = _identity(values_of(params, self.space)) in self._known
            if params and params not in queued and not known:
                self.study.enqueue_trial(params)
                queued.append(params)
        return len(queued) - before

    def warm_start(self, storage: Path, *, name: str, count: int = 10) -> int:
        """Queue the `count` best points of another search, to be run here first; returns how many were
        queued.

        The points are run again rather than their values believed: the other study may have had other data or
        other epochs, and every number of this study should be its own. Does nothing the second time.
        """
        return self.start_from(best_points(storage, name=name)[:count], name=name)

    def start_from(self, points: Iterable[Mapping[str, str]], *, name: str) -> int:
        """Queue the `points` of the study `name`, once; returns how many were queued."""
        if self.study.user_attrs.get(WARM) == name:
            return 0
        queued = self.enqueue(points)
        self.study.set_user_attr(WARM, name)
        return queued

    def reap(self) -> list[Trial]:
        """The trials that an earlier coordinator left running, to be run again under the same numbers. Asked
        once: the second time there are none."""
        left, self._left = self._left, []
        return left

    def _reopen(self) -> list[Trial]:
        """Remember the points of the journal; returns the trials left running."""
        left = []
        for frozen in self._frozen():
            if frozen.state == TrialState.WAITING or REPEAT in frozen.user_attrs and frozen.state.is_finished():
                continue
            if frozen.state == TrialState.RUNNING and not {ASKED, GIVEN} & frozen.user_attrs.keys():
                self.study.tell(frozen.number, state=TrialState.FAIL)  # its sampler raised
                continue
            trial = self._trial(frozen)
            earlier = self._known.setdefault(_identity(trial.values), trial.number)
            if earlier < trial.number and trial.state == "running" and GIVEN not in frozen.user_attrs:
                self._repeat(trial.number, earlier)
            elif trial.state == "running":
                left.append(trial)
        return left

    def _draw(self) -> Trial:
        """A new trial, filled from the queue and by the sampler."""
        self.study.sampler = self._sampler()
        trial = self.study.ask()
        suggest(trial, self.space)
        trial.set_user_attr(ASKED, True)  # without it, the next opening of the journal undoes the draw
        return self._trial(self._storage.get_trial(self._trial_id(trial.number)))

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Of the next trial: the first in the queue, or a new one."""
        waiting = self._frozen(TrialState.WAITING)
        return build_sampler(
            self.sampler,
            self.space,
            objectives=len(self.directions),
            seed=self.seed,
            number=waiting[0].number if waiting else self._storage.count(self._study_id),
            excerpt=self._excerpt(),
        )

    def _excerpt(self) -> Excerpt | None:
        """What the sampler is shown of the trials; None for all of them."""
        if self._excerpts is None:
            return None
        return self._excerpts.of(self._storage.since(self._study_id, self._excerpts.start))

    def _add(self, params: Mapping[str, Any]) -> Trial:
        """A running trial at exactly these parameters."""
        kinds = {axis.name: distribution(axis) for axis in self.space.axes if axis.name in params}
        running = create_trial(
            state=TrialState.RUNNING, params=dict(params), distributions=kinds, user_attrs={GIVEN: True}
        )
        self.study.add_trial(running)
        trial = self._trial(self._frozen()[-1])
        self._known.setdefault(_identity(trial.values), trial.number)
        self.asked += 1
        return trial

    def _untried(self) -> dict[str, Any] | None:
        """A point that was not tried yet, at random; None when there is none (to be found)."""
        draw = random.Random(trial_seed(self.seed, len(self._frozen())))
        size = self.space.size
        picked = (pick(self.space, draw) for _ in range(TRIES))
        listed = every(self.space) if size is not None and size <= LIMIT else iter(())
        for params in itertools.chain(picked, listed):
            if _identity(values_of(params, self.space)) not in self._known:
                return params
        return None

    # Judging

    def report(self, number: int, step: int, value: float) -> bool:
        """Take a trial's value at `step` (an epoch: the mean over its replicates; with the wilcoxon pruner, a
        replicate: its final value). True when the trial should be pruned. What was said of a step before a
        restart is not judged again: the decision taken then holds."""
        trial_id = self._trial_id(number)
        frozen = self._storage.get_trial(trial_id)
        assert not frozen.state.is_finished(), f"trial {number} has ended"
        if step not in frozen.intermediate_values:
            self._storage.set_trial_intermediate_value(trial_id, int(step), float(value))
            self._judge(trial_id)
        return self._storage.get_trial(trial_id).user_attrs.get(PRUNE, step + 1) <= step

    def _judge(self, trial_id: int) -> None:
        """Write down whether its last report is its end."""
        frozen = self._storage.get_trial(trial_id)
        if not frozen.state.is_finished() and self._hopeless(frozen):
            self._storage.set_trial_user_attr(trial_id, PRUNE, max(frozen.intermediate_values))

    def _hopeless(self, frozen: FrozenTrial) -> bool:
        if self._by_replicates and not all(map(math.isfinite, frozen.intermediate_values.values())):
            return False  # the signed-rank test needs differences
        return self.study.pruner.prune(self.study, frozen)

    def tell(self, number: int, values: float | Sequence[float] | None = None, *, state: str = "complete") -> None:
        """End a trial: complete (with its objectives), pruned or failed. Telling an ended trial again is
        ignored.

        A value that is not finite counts as the worst there is, so that the sampler learns to avoid a region
        that diverges; a failed trial teaches it nothing. A trial pruned over replicates has a fair estimate
        in the mean of those it had (`values`), and Optuna is told that; one pruned over epochs keeps its last
        report.
        """
        trial_id = self._trial_id(number)
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        assert state in STATES, state
        if state == "pruned" and self._by_replicates and values is not None:
            self._storage.set_trial_user_attr(trial_id, ESTIMATE, True)
            state = "complete"
        scores = self._scores(values) if state == "complete" else None
        self.study.tell(number, scores, state=STATES[state])
        self._journal.sync()

    def _scores(self, values: float | Sequence[float] | None) -> list[float]:
        assert values is not None, "a complete trial has values"
        scores = values if isinstance(values, Sequence) else [values]
        return [_finite(score, direction) for score, direction in zip(scores, self.directions, strict=True)]

    def _repeat(self, number: int, earlier: int) -> None:
        """Tell Optuna that trial `number` came out as the `earlier` one at the same point."""
        self._storage.set_trial_user_attr(self._trial_id(number), REPEAT, earlier)
        frozen = self._storage.get_trial(self._trial_id(earlier))
        state = frozen.state if frozen.state.is_finished() else TrialState.FAIL
        self.study.tell(number, frozen.values if state == TrialState.COMPLETE else None, state=state)

    # Looking

    @property
    def trials(self) -> list[Trial]:
        """Every trial handed out, in order of their numbers, without repeats and those still queued."""
        handed_out = (t for t in self._frozen() if t.state != TrialState.WAITING and REPEAT not in t.user_attrs)
        return [self._trial(frozen) for frozen in handed_out]

    @property
    def points(self) -> int:
        """How many points were handed out: one that failed and was handed out again counts once."""
        return len(self._known)

    @property
    def best(self) -> Trial | None:
        """The best complete trial of a search with one objective; None before there is one."""
        assert len(self.directions) == 1, "several objectives have a front, not a best"
        return next(iter(self.front), None)

    @property
    def front(self) -> list[Trial]:
        """The complete trials that no other one beats in every objective (the Pareto front), the earliest
        first."""
        return pareto_front(self.trials, self.directions)

    def _frozen(self, *states: TrialState) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False, states=states or None)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _trial(self, frozen: FrozenTrial) -> Trial:
        state = "pruned" if ESTIMATE in frozen.user_attrs else NAMES.get(frozen.state, "running")
        scores = tuple(frozen.values) if frozen.values is not None else None
        values = values_of(frozen.params, self.space)
        return Trial(frozen.number, values, state, scores, dict(frozen.intermediate_values))


def _identity(values: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def _finite(score: float, direction: str) -> float:
    return float(score) if math.isfinite(score) else math.inf if direction == "minimize" else -math.inf
