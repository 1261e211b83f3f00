"""The space of a study: axes, each with its values or its interval, and the grid they span.

An axis is one decision. Usually it sets one key (`optimizer.lr`); zipped keys and explicit points set several
at once. Everything is kept as text of Hydra's override grammar, so that a point of the space is a list of
overrides and `[dropout,batchnorm]` or `'a b'` survive the trip.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fanin.errors import ConfigError, require

LIMIT = 100_000  # points of a grid; beyond it nobody waits for the end
DISCRETE = ("choice", "range", "zip", "points")


def bare(key: str) -> str:
    """The key without the `+` or `++` that only tells Hydra how to apply it."""
    return key.lstrip("+")


def same(one: str, other: str) -> bool:
    """Whether two override texts mean the same value: equal, or equal as numbers (`1e-3` and `0.001`)."""
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


@dataclass(frozen=True)
class Condition:
    """The axis exists only where `key` has one of `values`."""

    key: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"


@dataclass(frozen=True)
class Axis:
    """One decision of the space.

    `key` is as typed, with `+`, `++` and `@package`; zipped keys are joined by `|`; explicit points share the
    key `points`. `kind` is choice, range, zip, points (these have `values`, and can be enumerated), or
    interval (floats) and int (integers) from `low` to `high`, both included. A range has bounds and `step`
    too: a search takes it as an ordered number, not as a set of names. `assignments` says what each value of
    a zip or of points stands for.
    """

    key: str
    kind: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    when: tuple[Condition, ...] = ()
    assignments: tuple[Mapping[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The key without `+`: the name of the parameter in Optuna and in tables."""
        return "|".join(bare(key) for key in self.key.split("|"))

    @property
    def text(self) -> str:
        """A canonical description: equal for axes that offer the same, however they were written."""
        text = ",".join(self.values) if self.kind in DISCRETE else f"{self.kind}({self.low},{self.high})"
        text = f"log({text})" if self.log else text
        return " if ".join([text, *(str(condition) for condition in self.when)])

    @property
    def keys(self) -> tuple[str, ...]:
        """The override keys the axis sets."""
        if self.assignments:
            return tuple(dict.fromkeys(key for assignment in self.assignments for key in assignment))
        return (self.key,)

    @property
    def size(self) -> int | None:
        """How many values there are; None for an interval of floats."""
        if self.kind in DISCRETE:
            return len(self.values)
        assert self.low is not None and self.high is not None
        return int(self.high - self.low) + 1 if self.kind == "int" else None

    def exists(self, point: Mapping[str, str]) -> bool:
        """Whether the axis is there at `point`, given every axis before it. A condition on a key that `point`
        does not set (its own axis does not exist) does not hold."""
        known = {bare(key): text for key, text in point.items()}
        return all(known.get(bare(condition.key)) in condition.values for condition in self.when)

    def assign(self, value: str) -> dict[str, str]:
        """What the choice of `value` sets: override key -> text."""
        if self.assignments:
            return dict(self.assignments[self.values.index(value)])
        return {self.key: value}

    def locate(self, point: Mapping[str, str]) -> str | None:
        """The value this axis has at `point` (its own spelling); None where it offers no such value. A zip
        and explicit points are found by the keys they set, or by their name."""
        known = {bare(key): text for key, text in point.items()}
        if self.assignments and self.name in known:
            return known[self.name] if known[self.name] in self.values else None
        if self.assignments:
            pairs = zip(self.values, self.assignments, strict=True)
            return next((value for value, assignment in pairs if _covers(known, assignment)), None)
        text = known.get(bare(self.key))
        if text is None:
            return None
        if self.kind in DISCRETE:
            return next((value for value in self.values if same(value, text)), None)
        return text if self._holds(text) else None

    def _holds(self, text: str) -> bool:
        assert self.low is not None and self.high is not None
        try:
            number = float(text)
        except ValueError:
            return False
        return self.low <= number <= self.high and (self.kind == "interval" or number.is_integer())


def _covers(known: Mapping[str, str], assignment: Mapping[str, str]) -> bool:
    return all(bare(key) in known and same(known[bare(key)], text) for key, text in assignment.items())


@dataclass(frozen=True)
class Space:
    """Axes, those that others depend on first, and `fixed` overrides that hold at every point."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...] = ()

    @property
    def conditional(self) -> bool:
        return any(axis.when for axis in self.axes)

    @property
    def size(self) -> int | None:
        """How many points there are, without listing them; None if some axis is an interval of floats."""
        if any(axis.size is None for axis in self.axes):
            return None
        conditions = [condition for axis in self.axes for condition in axis.when]
        asked = {(bare(c.key), value) for c in conditions for value in c.values}
        return _count(self.axes, {}, asked)

    def grid(self, *, limit: int = LIMIT) -> Iterator[dict[str, str]]:
        """Every point once, as override key -> text, the last axis fastest. Raises ConfigError at once for an
        axis that cannot be enumerated and for more than `limit` points."""
        for axis in self.axes:
            if axis.kind not in DISCRETE:
                raise ConfigError(
                    f"{axis.key}: {axis.text} has no list of values, so a grid cannot contain it; write "
                    f"range({axis.low:g},{axis.high:g},step) or a list, or search it: hydra/sweeper=tpe"
                )
        size = self.size
        assert size is not None
        sizes = " x ".join(str(axis.size) for axis in self.axes)
        rule = f"a grid has at most {limit:,} points (axes: {sizes}); sample it instead: hydra/sweeper=random"
        require(size <= limit, "hydra.sweeper.params", rule, f"{size:,}")
        return _walk(self.axes, {})


def _walk(axes: Sequence[Axis], point: dict[str, str]) -> Iterator[dict[str, str]]:
    if not axes:
        yield point
        return
    axis, *rest = axes
    if not axis.exists(point):
        yield from _walk(rest, point)
        return
    for value in axis.values:
        yield from _walk(rest, {**point, **axis.assign(value)})


def _count(axes: Sequence[Axis], point: dict[str, str], asked: set[tuple[str, str]]) -> int:
    """The number of points below `point`. Branches only where a later condition tells values apart."""
    if not axes:
        return 1
    axis, *rest = axes
    if not axis.exists(point):
        return _count(rest, point, asked)
    if axis.kind == "int":
        assert axis.size is not None
        return axis.size * _count(rest, point, asked)
    kinds = Counter(_telling(axis.assign(value), asked) for value in axis.values)
    return sum(n * _count(rest, {**point, **dict(telling)}, asked) for telling, n in kinds.items())


def _telling(assignment: Mapping[str, str], asked: set[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((bare(key), text) for key, text in assignment.items() if (bare(key), text) in asked)
