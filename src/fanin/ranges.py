"""Ranges of numeric settings: what a library would accept silently, or trip over in the middle of a run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fanin.errors import require


@dataclass(frozen=True)
class Range:
    """A condition on a value, and the rule that a user is told when it does not hold."""

    rule: str
    holds: Callable[[object], bool]


def number(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Range:
    """A finite number: > `above`, >= `least`, < `below` and <= `most`."""
    bounds = [(">", above), (">=", least), ("<", below), ("<=", most)]
    told = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    return Range(
        f"must be a finite number {told}".rstrip(),
        lambda value: is_number(value) and above < value < below and least <= value <= most,  # type: ignore[operator]
    )


def whole(least: int) -> Range:
    return Range(f"must be a whole number >= {least}", lambda value: is_whole(value, least=least))


def optional(other: Range) -> Range:
    return Range(f"{other.rule}, or null", lambda value: value is None or other.holds(value))


def sequence(length: int, of: Range) -> Range:
    return Range(
        f"must be a list of {length}, each of which {of.rule}",
        lambda value: isinstance(value, list | tuple) and len(value) == length and all(map(of.holds, value)),
    )


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, *, least: float = -math.inf) -> bool:
    return type(value) is int and value >= least


def check(values: Mapping[str, object], ranges: Mapping[str, Range], *, group: str) -> None:
    """Raise a ConfigError for the first of `values` that leaves its range; values without one pass."""
    for key, value in values.items():
        if key in ranges:
            require(ranges[key].holds(value), f"{group}.{key}", ranges[key].rule, value)
