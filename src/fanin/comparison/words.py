"""Numbers and names as people write them; lines of at most 100 columns."""

import math
import textwrap
from collections.abc import Hashable, Sequence

WIDTH = 100


def name(level: Hashable) -> str:
    """A level as people write it: 4 significant digits of a float."""
    return f"{level:.4g}" if isinstance(level, float) else str(level)


def number(value: float) -> str:
    """4 decimals where they say something."""
    return f"{value:.4f}" if 0.00005 <= abs(value) < 1000 or abs(value) < 1e-12 else f"{value:.2g}"


def percent(share: float) -> str:
    """A share between 0 and 1 in percent, 3 significant digits."""
    return f"{100 * share:.3g} %"


def probability(p: float) -> str:
    """.031, or < .001"""
    return "< .001" if p < 0.001 else f"{p:.2g}".removeprefix("0")


def with_half(mean: float, half: float) -> str:
    """A mean and the half width of its interval, in the unit of the metric; NaN (of one replicate): no interval."""
    return number(mean) if math.isnan(half) else f"{number(mean)} ± {number(half)}"


def plain(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, cut where a line would be too long; the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    first = max(4, min(first, WIDTH - sum(others) - 2 * len(others)))
    rule = ["-" * width for width in (first, *others)]
    table = (rows[0], rule, *rows[1:])
    lines = [[_cut(row[0], first).ljust(first), *map(str.rjust, row[1:], others)] for row in table]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def wrap(line: str, indent: str = "") -> str:
    """Lines of at most `WIDTH` columns; those after the first are indented further."""
    later = indent + "  "
    return textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False)
