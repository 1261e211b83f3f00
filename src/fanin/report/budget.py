"""What a budget buys: the expected value of the best of n variants, for each choice of a factor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from fanin.comparison.aggregates import expected_best
from fanin.report.series import numbers

TUNED = 4  # values of a number from which on it is tuned
FEWEST = 6  # variants from which on there is a curve to draw
MOST_CHOICES = 8


def draw(
    axes: Sequence[Mapping[str, Any]], variants: Sequence[Mapping[str, Any]], *, direction: str
) -> dict[str, Any] | None:
    """key -> choices with `n` tries' `seconds` and `expected` best, as if the variants had been tried in random order;
    None where nothing is tuned: nobody draws initializers at random. A variant that was stopped counts with its last
    value, a lower bound."""
    keys = {axis["key"]: _choices(axis) for axis in axes if _splits(axis)}
    tuned = any(axis["number"] and len({*axis["value"]} - {None}) >= TUNED for axis in axes)
    if not tuned or len(variants) < FEWEST:
        return None
    every = {"all variants": range(len(variants))}
    drawn = {key: _curves(choices, variants, direction) for key, choices in ({"none": every} | keys).items()}
    return drawn if drawn["none"] else None


def _splits(axis: Mapping[str, Any]) -> bool:
    return 2 <= len(axis["names"] or ()) <= MOST_CHOICES


def _choices(axis: Mapping[str, Any]) -> dict[str, list[int]]:
    return {
        name: [v for v, level in enumerate(axis["level"]) if level == place] for place, name in enumerate(axis["names"])
    }


def _curves(choices: Mapping[str, Any], variants: Sequence[Mapping[str, Any]], direction: str) -> list[dict[str, Any]]:
    sign = 1 if direction == "maximize" else -1
    found = []
    for name, places in choices.items():
        some = [variants[place] for place in places]
        values = [one["last"] if one["mean"] is None else one["mean"] for one in some]
        tried = numpy.array([value for value in values if value is not None], dtype=float)
        costs = [len(one["runs"] or [0]) * one["seconds"] for one in some if one["seconds"] is not None]
        if len(tried) > 1 and costs:
            n = numpy.arange(1, len(tried) + 1)
            expected = sign * expected_best(sign * tried)
            found.append({"name": name, "expected": numbers(expected), "seconds": numbers(n * numpy.mean(costs))})
    return found
