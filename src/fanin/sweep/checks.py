"""Before the first run: every planned configuration is built once, in a worker, without memory or training."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fanin.errors import ConfigError
from fanin.folders import MEMORY, read_json
from fanin.sweep.channel import Failure
from fanin.sweep.claims import metrics_of
from fanin.sweep.display import waiting
from fanin.sweep.identity import difference, hash_of, identity_of
from fanin.sweep.pool import Event, Pool
from fanin.sweep.space import DISCRETE, Axis, Condition, bare
from fanin.sweep.study import Study, Variant

SHOWN = 5  # complaints shown when many configurations are refused
CHECK_PATIENCE = 60.0  # seconds to build one configuration, its data read for the first time included
# Keys that act under one norm only, and the choice that makes it.
OF_A_NORM = {
    "regularization.groups": ("group", "groupnorm"),
    "regularization.norm_noise": ("noisy_batch", "noisy_batchnorm"),
}


def check_ground(project: Path) -> None:
    """Whether there is a place to write to. Raises ConfigError."""
    memory = project / MEMORY
    place = memory if memory.exists() else project
    if not place.is_dir():
        raise ConfigError(f"{place}: is a file, where the records of runs have their folder: move it away")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{place}: cannot be written to, and the records of runs belong there")


def check_tracking(study: Study, project: Path) -> None:
    """Hear a server's no before the first run starts. One that is down may come back: training does not wait.

    Raises ConfigError.
    """
    from fanin.tracking import Tracker, TrackingDown, TrackingRefused

    uri = study.base.config["tracking"]["uri"] if study.own else "none"
    tracker = Tracker(project=project, uri=uri) if uri != "none" else None
    if tracker is None or tracker.local:
        return
    try:
        tracker.admit(study.name)
    except TrackingRefused as error:
        raise ConfigError(f"tracking: {error}") from error
    except TrackingDown as error:
        print(f"fanin: the runs stay here until tracking is back: {error}", file=sys.stderr)


def grid_of(study: Study) -> list[Variant]:
    """The variants of a grid, each once; points that come to the same configuration are named."""
    distinct: dict[str, Variant] = {}
    twins: list[str] = []
    for point in study.space.grid():
        one = study.variant(point)
        if distinct.setdefault(one.key, one) is not one:
            twins.append(f"{one.name} is {distinct[one.key].name}")
    if twins:
        print(f"  the same configuration, run once: {_some(twins, 'points')}")
    return list(distinct.values())


def check_held(study: Study, variants: Sequence[Variant], runs: Path) -> None:
    """Refuse to go on with a study whose `runs` had other configurations under the same choices: a file of conf/ has
    changed since, and one table would have both. Raises ConfigError with the difference."""
    keys = {one.key for one in variants}
    now = {json.dumps(one.shown, sort_keys=True, default=str): one for one in variants}
    for folder in sorted(runs.glob("*/")):
        if folder.name.rpartition("-r")[0] in keys:  # a run's key begins with its variant's
            continue
        run = read_json(folder / "run.json")
        if run is None or (one := now.get(json.dumps(run["overrides"], sort_keys=True))) is None:
            continue
        after = json.loads(json.dumps(one.composition.config, default=str))
        before, after = (identity_of(config) if study.own else config for config in (run["config"], after))
        head = (
            f"study {study.name!r} holds another question: {run['name']} was run, and its choices have changed since:"
        )
        way = f"{study.flags[1]} puts its runs aside and starts over; {study.flags[2]} keeps both"
        raise ConfigError("\n  ".join([head, *difference(before, after), way]))


def corners(study: Study) -> list[Variant]:
    """Configurations that show whether a search can run at all: the default, each choice, both ends of each range."""
    points: list[dict[str, str]] = [{}]
    for axis in study.space.axes:
        points += [{**_parents(axis, study.space.axes), **axis.assign(value)} for value in _ends(axis)]
    return [study.variant(point) for point in points]


def _ends(axis: Axis) -> Sequence[str]:
    if axis.kind in DISCRETE:
        return axis.values
    assert axis.low is not None and axis.high is not None
    kind = int if axis.kind == "int" else float
    return [repr(kind(axis.low)), repr(kind(axis.high))]


def _parents(axis: Axis, axes: Sequence[Axis]) -> dict[str, str]:
    """A point at which `axis` exists: the axes it depends on have a value it wants."""
    point: dict[str, str] = {}
    for condition in axis.when:
        pairs = ((parent, parent.assign(value)) for parent in axes for value in parent.values)
        parent, assigned = next((p, a) for p, a in pairs if _sets(a, condition))
        point |= _parents(parent, axes) | assigned
    return point


def _sets(assigned: Mapping[str, str], condition: Condition) -> bool:
    texts = {bare(key): text for key, text in assigned.items()}
    return texts.get(bare(condition.key)) in condition.values


def check(variants: Sequence[Variant], pool: Pool, *, study: Study) -> None:
    """Build every planned configuration in a worker; raises ConfigError with what is wrong, once per reason."""
    check_idle(study, variants)
    patience = max(CHECK_PATIENCE, study.base.config["hardware"]["patience"])
    with waiting(f"checking {len(variants)} configurations" if len(variants) > 1 else "checking the configuration"):
        complaints = _complaints(pool, [_checked(study, one) for one in variants], seconds=patience)
    reasons: dict[str, list[str]] = {}
    for one, complaint in zip(variants, complaints, strict=True):
        if complaint:
            reasons.setdefault(complaint, []).append(one.name)
    if not reasons:
        return
    lines = [f"{reason}\n    in {_some(names)}" if len(variants) > 1 else reason for reason, names in reasons.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    raise ConfigError("\n  ".join(lines[:SHOWN]) + more)


def _complaints(pool: Pool, configs: Sequence[Mapping[str, Any]], *, seconds: float) -> list[str | None]:
    """What is wrong with each configuration. A user's own code may crash its worker, or never end: then that is it,
    and the next worker goes on; after some such ends, the last ones are not looked at."""
    found: list[str | None] = []
    for _ in range(SHOWN):
        event = _answer(pool, "check", configs[len(found) :], seconds=seconds, hear=found.append)
        if event.kind != "died":
            _raise_failure(event)
            break
        found.append(f"the worker that built it: {event.payload}")
        if len(found) == len(configs):
            break
    return found + [None] * (len(configs) - len(found))


def check_idle(study: Study, variants: Sequence[Variant]) -> None:
    """Refuse a setting of a norm that no variant has; and one that is swept where the norm is another, which would
    run the same networks over and over."""
    for key, (norm, choice) in OF_A_NORM.items():
        group, _, name = key.partition(".")
        settings = [one.composition.config[group] for one in variants]
        idle = [one for one in settings if one["norm"] != norm and one[name] != study.composer.default(key)]
        if idle and (key in study.swept or len(idle) == len(settings)):
            way = f"add {group}={choice}, or leave it out"
            if len(idle) < len(settings):
                way = f"sweep it under that norm only: study.when={{{key}: {{{group}: [{choice}]}}}}"
            raise ConfigError(f"{key}: has no effect with norm={idle[0]['norm']}, got {idle[0][name]!r}; {way}")


def here(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration as this machine can check it, when its runs go to another, which has other devices."""
    hardware = config["hardware"]
    if hardware["cluster"] == "none":
        return config
    precision = "fp32" if hardware["precision"] == "tf32" else hardware["precision"]
    return {**config, "hardware": {**hardware, "device": "cpu", "precision": precision}}


def _checked(study: Study, variant: Variant) -> Mapping[str, Any]:
    """A configuration, with the metrics that criteria want of it in the place of all criteria."""
    config = here(variant.composition.config)
    return {**config, "study": {**config["study"], "criteria": metrics_of(study, variant)}}


def _some(names: Sequence[str], what: str = "variants") -> str:
    return names[0] if len(names) == 1 else f"{len(names)} {what}, e.g. {names[0]}"


def call(pool: Pool, kind: str, payload: Any) -> Any:
    """Have a worker do something now, and wait for it."""
    event = _answer(pool, kind, payload, seconds=math.inf)
    if event.kind == "died":
        raise ConfigError(f"the worker that should {kind} the configuration was {event.payload}")
    _raise_failure(event)
    return event.payload


def _raise_failure(event: Event) -> None:
    if isinstance(event.payload, Failure):
        if event.payload.user:
            raise ConfigError(event.payload.message)
        raise RuntimeError(event.payload.traceback)


def try_call(pool: Pool, kind: str, payload: Any, *, seconds: float) -> tuple[Any, str]:
    """As `call`, for what may fail in a user's own code: (the answer, why there is none). It ends in time, and the
    worker that would not, or died of it, is replaced. Raises ConfigError."""
    event = _answer(pool, kind, payload, seconds=seconds)
    if event.kind == "died":
        return None, str(event.payload)
    if isinstance(event.payload, Failure):
        if event.payload.user:
            raise ConfigError(event.payload.message)
        return None, event.payload.message
    return event.payload, ""


def _answer(pool: Pool, kind: str, payload: Any, *, seconds: float, hear: Callable[[Any], None] | None = None) -> Event:
    """How the task ended. What it says on its way goes to `hear`, and gives it as many seconds again."""
    pool.fill(1)
    worker = pool.free()[0]
    worker.do(kind, payload, task=kind)
    deadline = time.monotonic() + seconds
    while True:
        for event in pool.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            if event.kind == "record" and hear:
                hear(event.payload)
                deadline = time.monotonic() + seconds
                continue
            event.worker.task = None
            return event
        if time.monotonic() > deadline and not worker.ended:
            worker.kill(f"not done after {seconds:g} s")
            deadline = math.inf


def fetch(variants: Sequence[Variant], pool: Pool) -> None:
    """Download what is missing, once, before several workers want it."""
    groups = {hash_of(one.composition.config["data"]): one.composition.config for one in variants}
    for config in groups.values():
        call(pool, "fetch", config)
