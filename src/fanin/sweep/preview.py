"""`--dry-run`: the plan, its size, what of it is done already, and how long the rest will take."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fanin.errors import ConfigError
from fanin.shared import glance
from fanin.shared.connection import place_of
from fanin.sweep import preflight
from fanin.sweep.checks import call, here
from fanin.sweep.display import clock, fit, waiting
from fanin.sweep.folder import outcome
from fanin.sweep.identity import hash_of
from fanin.sweep.pool import Pool
from fanin.sweep.study import Study, Variant
from fanin.tracking import TrackingDown, TrackingRefused

LISTED = 40  # variants
NAMED = 38  # characters of a name, so that a line has at most 100
# What decides how long an epoch takes, and how long an initializer that trains.
COSTLY = ("model", "data", "optimizer", "regularization", "batch_size", "stats")
PRETRAINED = ("model", "data", "regularization", "initializer")


def show_plan(study: Study, variants: Sequence[Variant], pool: Pool, *, project: Path) -> None:
    """Print what a sweep would do."""
    grid = study.sampler["name"] == "grid"
    plan = {one.key: one for one in variants}
    elsewhere, state = shared_state(study)
    done = len(runs_done(study, plan, project=project) | runs_of(study, plan) & elsewhere) if grid else 0
    for label, text in [*rows(study, plan, done=done), *state]:
        print(f"{label:<10}{text}", flush=True)
    if grid:
        for line in listing(fly(study, list(plan.values())[:LISTED], pool)):
            print(line)
        if len(plan) > LISTED:
            print(f"  ... and {len(plan) - LISTED} more")
        if len(plan) < len(variants):
            print(f"  {len(variants)} points, of which some mean the same: each variant is run once")
    print(f"{'estimate':<10}{estimate(study, plan, pool, done=done)}")


def fly(study: Study, variants: Sequence[Variant], pool: Pool) -> preflight.Flown:
    """Without flights before the data are here."""
    try:
        return preflight.fly(study, variants, pool)
    except ConfigError:
        return preflight.Flown(variants, {})


def listing(flown: preflight.Flown) -> Iterator[str]:
    """A line a variant: with what was found of it at initialization, where anything was."""
    variants, flights = flown.variants, flown.flights
    keyed = max(len(one.name) for one in variants) <= NAMED  # all with their keys, or none: the axes name them
    bare = [" ".join(word.partition("=")[2] or word for word in one.name.split(" ")) for one in variants]
    names = [one.name if keyed else fit(short, NAMED) for one, short in zip(variants, bare, strict=True)]
    if not flights:
        yield from (f"  {one.key}  {one.name}" for one in variants)
        return
    rows = [preflight.columns(flights.get(one.key)) for one in variants]
    width = max(map(len, names))
    yield "  gain a layer at initialization, measured (predicted); 1 keeps signal and gradient as they are"
    yield f"  {'':<10}  {'':<{width}}  {'forward':<17}  {'backward':<17}  verdict"
    for one, name, (forward, backward, verdict) in zip(variants, names, rows, strict=True):
        yield f"  {one.key}  {name:<{width}}  {forward:<17}  {backward:<17}  {verdict}".rstrip()
    yield from sorted({f"  unknown: {one['reason']}" for one in flights.values() if one["verdict"] == "unknown"})


def show_run(one: Variant, study: Study, pool: Pool) -> None:
    """Print what a single run would be: its whole configuration."""
    config = {key: value for key, value in one.composition.config.items() if key != "study"}
    print(yaml.safe_dump(config, sort_keys=False), flush=True)
    print(f"estimate: {estimate(study, {one.key: one}, pool, done=0)}")


def rows(study: Study, plan: Mapping[str, Variant], *, done: int) -> Iterator[tuple[str, str]]:
    grid = study.sampler["name"] == "grid"
    yield "study", f"{study.name}: {study.question}" if study.question else study.name
    for axis in study.space.axes:
        yield "axis", f"{axis.name}: {axis.text}"
    pruner = f", pruned by {study.pruner_name}" if study.pruner else ""
    yield "search", ("grid" if grid else f"{study.sampler['name']}, {limits(study)}") + pruner
    count = len(plan) if grid else study.budget.trials
    if count is not None:
        most = "at most " if study.racing or study.pruner or not grid else ""
        total = f"{_count(count, 'variant')} x {_count(study.replicates, 'replicate')}"
        yield "runs", f"{most}{total} = {count * study.replicates:,}" + f", of which {done} are done" * bool(done)
    yield "judged by", ", ".join(f"{o.metric} ({o.direction})" for o in study.objectives)


def limits(study: Study) -> str:
    """When a search ends."""
    budget = study.budget
    ends = {
        f"after {_count(budget.trials or 0, 'trial')}": budget.trials,
        f"after {clock(budget.seconds or 0)}": budget.seconds,
        f"after {_count(budget.epochs or 0, 'epoch')}": budget.epochs,
        f"at {study.objective.metric} {budget.target}": budget.target,
    }
    given = [text for text, limit in ends.items() if limit is not None]
    return "ends " + " or ".join(given) if given else "ends when every point is tried"


def runs_of(study: Study, plan: Mapping[str, Variant]) -> frozenset[str]:
    return frozenset(f"{key}-r{replicate}" for key in plan for replicate in range(study.replicates))


def runs_done(study: Study, plan: Mapping[str, Variant], *, project: Path) -> frozenset[str]:
    """Those for which nothing is left to do, as far as this folder knows."""
    ended = {key: outcome(study.folder(project) / "runs" / key) for key in runs_of(study, plan)}
    return frozenset(key for key, one in ended.items() if one is not None and one.final)


def shared_state(study: Study) -> tuple[frozenset[str], list[tuple[str, str]]]:
    """The study's runs that are done according to PostgreSQL, if its state is kept there, and a line about it."""
    address = study.base.state if study.own else None
    if address is None:
        return frozenset(), []
    try:
        done = glance.ended(address, study.name)
    except (TrackingDown, TrackingRefused) as error:
        return frozenset(), [("state", f"cannot be asked, so that only this folder counts: {error}")]
    return done, [("state", f"{place_of(address)}: {_count(len(done), 'run')} done there, by all machines together")]


def estimate(study: Study, plan: Mapping[str, Variant], pool: Pool, *, done: int) -> str:
    """Training time, from a few measured batches of each architecture, and of each initializer that trains."""
    costs: dict[str, float] = {}

    def cost(config: Mapping[str, Any], kind: str, groups: Sequence[str]) -> float:
        key = hash_of([kind, *(config[group] for group in groups)])
        if key not in costs or (kind == "estimate" and not costs[key]):  # of one that diverged at once
            costs[key] = call(pool, kind, here(config))
        return costs[key]

    total = 0.0
    with waiting("measuring a few batches"):
        for one in plan.values():
            config = one.composition.config
            try:
                total += cost(config, "estimate", COSTLY) * config["epochs"] + cost(config, "pretraining", PRETRAINED)
            except ConfigError as error:
                return f"unknown until the data are here ({error})"
    count = len(plan) if study.sampler["name"] == "grid" else study.budget.trials or len(plan)
    left = count * study.replicates - done
    if left <= 0:
        return "nothing is left to train"
    seconds = total / len(plan) * left / pool.size
    if not seconds:
        return "no training: every run diverges at once" if study.base.config["epochs"] else "no training: epochs=0"
    threads = study.base.config["hardware"]["threads"]
    return f"about {clock(seconds)} of training by {_count(pool.size, 'worker')} of {_count(threads, 'thread')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
