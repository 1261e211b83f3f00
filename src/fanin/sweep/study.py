"""A study: one question, its space, and the identities that make resuming safe.

A variant is identified by a hash of its resolved configuration, so the same point reached through other
overrides is the same variant. A study is identified by its resolved question (identity.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fanin.criteria.grammar import Criterion
from fanin.errors import require, unknown
from fanin.folders import MEMORY
from fanin.sweep.compose import Composer, Composition
from fanin.sweep.grammar import text_of
from fanin.sweep.identity import hash_of, identity_of
from fanin.sweep.space import Space
from fanin.tracking import without_secrets

ABSENT = object()


@dataclass(frozen=True)
class Objective:
    """What a run is judged by: the final value of `metric`."""

    metric: str
    direction: str  # maximize | minimize

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1


@dataclass(frozen=True)
class Budget:
    """The end of a search, whichever comes first. `trials` and `epochs` count all sessions of a study,
    `seconds` this one; `target` ends it at the first trial that reaches it."""

    trials: int | None = None
    seconds: float | None = None
    target: float | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Study:
    """A parsed study, ready to be planned."""

    name: str
    question: str | None
    objectives: tuple[Objective, ...]
    replicates: int
    space: Space
    composer: Composer
    base: Composition
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None = None
    racing: Mapping[str, Any] | None = None
    on_divergence: str = "continue"  # continue | stop: of the further replicates of a variant
    preflight: str = "warn"  # warn | skip | off: of variants that are hopeless at initialization
    prune_on: tuple[str, ...] = ()  # findings of diagnose that end a run, and so its variant
    budget: Budget = field(default_factory=Budget)
    seed: int = 0  # of the search
    warm_start: str | None = None  # the study whose best points a search tries first
    profile: str | None = None  # which of study.profiles; None: the study as its file has it
    criteria: tuple[Criterion, ...] = ()
    own: bool = True  # fanin's own training; else a foreign program's function

    @property
    def objective(self) -> Objective:
        return self.objectives[0]

    @property
    def swept(self) -> list[str]:
        """The keys that vary, as they appear in configurations and tables: a study's axis that was narrowed to one
        value does not, unless they all were."""
        every = [key.lstrip("+") for axis in self.space.axes for key in axis.keys]
        return [key for key in every if key not in self._settled] or every

    @cached_property
    def _settled(self) -> frozenset[str]:
        return frozenset(key.lstrip("+") for axis in self.space.axes if axis.size == 1 for key in axis.keys)

    @property
    def race(self) -> dict[str, Any] | None:
        """All that decides how the study's race goes; None if it is none."""
        return {"max_replicates": self.replicates, **self.racing} if self.racing else None

    @property
    def flags(self) -> tuple[str, str, str]:
        """What the user writes to extend the study, to start it over, and to keep another one beside it."""
        if self.own:
            return "--extend", "--new", "study.name=..."
        return "hydra.sweeper.change=extend", "hydra.sweeper.change=new", "hydra.sweeper.study=..."

    @property
    def stops_diverging(self) -> bool:
        """Whether a variant of which a replicate diverged gets no further ones."""
        return self.on_divergence == "stop"

    @property
    def one_by_one(self) -> bool:
        """Whether a variant's next replicate waits for the one before, which may be the last."""
        return self.stops_diverging or bool(self.prune_on)

    @property
    def pruner_name(self) -> str:
        return str((self.pruner or {}).get("name", "none"))

    @property
    def classes(self) -> int | None:
        """Of the data; decides what a diverged run counts as. None for a foreign program."""
        return int(self.base.config["data"]["classes"]) if self.own else None

    @property
    def default(self) -> dict[str, str]:
        """The base configuration's point: each swept key with the value it has there, as override text."""
        keys = [key for axis in self.space.axes for key in axis.keys]
        values = {key: _resolved(self.base, key.lstrip("+")) for key in keys}
        return {key: text_of(value) for key, value in values.items() if value is not ABSENT}

    def variant(self, values: Mapping[str, str]) -> "Variant":
        """Compose the point `values`; raises ConfigError when it cannot be."""
        composition = self.composer.compose([f"{key}={text}" for key, text in values.items()])
        shown = {key.lstrip("+"): _shown(composition, key.lstrip("+"), text) for key, text in values.items()}
        decisive = identity_of(composition.config) if self.own else composition.config
        named = {key: value for key, value in shown.items() if key not in self._settled} or shown
        return Variant(hash_of(decisive), dict(values), shown, composition, name_of(named))

    def spec(self, variant: "Variant", replicate: int, *, number: int = 0) -> dict[str, Any]:
        """A run's specification, as the worker gets it and as run.json keeps it. `number`: of the variant."""
        return {
            "study": self.name,
            "key": f"{variant.key}-r{replicate}",
            "variant": variant.key,
            "replicate": replicate,
            "name": f"{variant.name} r{replicate}" if self.own else variant.name,
            "choices": dict(variant.composition.choices),
            "config": (self._recorded(variant) | {"replicate": replicate}) if self.own else variant.composition.config,
            "overrides": dict(variant.shown),
        } | ({} if self.own else self._call(variant, number))

    def _recorded(self, variant: "Variant") -> dict[str, Any]:
        """A configuration as it is written down: without the password that the address of a store may hold."""
        config = variant.composition.config
        uri = config["tracking"]["uri"]
        return {**config, "tracking": {**config["tracking"], "uri": uri and without_secrets(uri)}}

    def _call(self, variant: "Variant", number: int) -> dict[str, Any]:
        """What a foreign function's worker composes its configuration from."""
        return {
            "arguments": [*self.space.fixed, *(f"{key}={text}" for key, text in variant.values.items())],
            "number": number,
            "objectives": [objective.metric for objective in self.objectives],
        }

    def folder(self, project: Path) -> Path:
        return project / MEMORY / self.name

    def identity(self) -> dict[str, Any]:
        """The resolved question: what a resumed sweep must find unchanged."""
        return {
            "metric": [o.metric for o in self.objectives],
            "direction": [o.direction for o in self.objectives],
            "space": {axis.key: axis.text for axis in self.space.axes},
            "sampler": {key: value for key, value in self.sampler.items() if key not in PAST},
            "pruner": dict(self.pruner) if self.pruner else None,
            "racing": dict(self.racing) if self.racing else None,
            "replicates": self.replicates,
            "on_divergence": self.on_divergence,
            "preflight": "skip" if self.preflight == "skip" else None,
            "prune_on": sorted(self.prune_on) or None,
            "config": identity_of(self.base.config) if self.own else self.base.config,
        }


PAST = ("window",)  # options of a sampler that say how much of its past it looks at: they change no question
PLAIN = [f"{part}/{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")] + ["seconds"]
LAYERED = ("weight", "grad", "update", "activation", "signal")  # of a layer: build.py knows which there are
BETTER = {"accuracy": "maximize", "loss": "minimize", "seconds": "minimize"}


def objectives(metric: Any, direction: Any) -> tuple[Objective, ...]:
    """`study.metric` and `study.direction`, each one value or a list of equal length. Raises ConfigError."""
    metrics = metric if isinstance(metric, list) else [metric]
    directions = direction if isinstance(direction, list) else [direction] * len(metrics)
    rule = f"one direction for each of the {len(metrics)} metrics"
    require(metrics and len(metrics) == len(directions), "study.direction", rule, direction)
    pairs = zip(map(str, metrics), directions, strict=True)
    return tuple(Objective(one, _direction(one, wanted)) for one, wanted in pairs)


def _direction(metric: str, wanted: Any) -> str:
    """The direction of a metric: the one that is `wanted`, unless it is the wrong way round."""
    if metric not in PLAIN and metric.partition("/")[0] not in LAYERED:
        raise unknown("study.metric", metric, PLAIN)
    better = BETTER.get(metric.rpartition("/")[2]) if metric in PLAIN else None
    if wanted is None:
        require(better, "study.direction", f"must be maximize or minimize for {metric}", None)
        return str(better)
    if wanted not in ("maximize", "minimize"):
        raise unknown("study.direction", wanted, ["maximize", "minimize"])
    rule = f"{metric} is better the other way ({better}, or null)"
    require(better in (None, wanted), "study.direction", rule, wanted)
    return str(wanted)


@dataclass(frozen=True)
class Variant:
    """One point of the space. `values` maps the axes' keys to override texts, `shown` to what they resolve to;
    `name` has those that vary."""

    key: str
    values: Mapping[str, str]
    shown: Mapping[str, Any]
    composition: Composition
    name: str


def name_of(shown: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in shown.items()) or "default"


def _resolved(composition: Composition, key: str) -> Any:
    """The choice made for a group, the value of a key; ABSENT if there is neither."""
    if key in composition.choices:
        return composition.choices[key]
    node: Any = composition.config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def _shown(composition: Composition, key: str, text: str) -> Any:
    value = _resolved(composition, key)
    return text if value is ABSENT else value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "-".join(_short(v) for v in value)
    return text_of(value)
