"""What a number must be: `>= 0.95`, `< 0`, `0.2 .. 0.3`, `1.467 +- 5%`, `== 0`."""

import math
import re
from dataclasses import dataclass

from fanin.errors import require

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
ONE_SIDED = re.compile(rf"(>=|>|<=|<|==)\s*({NUMBER})")
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})")
AROUND = re.compile(rf"({NUMBER})\s*\+-\s*({NUMBER})\s*(%?)")
RULE = "must look like '>= 0.95', '< 0', '== 0', '0.2 .. 0.3' or '1.467 +- 5%'"


@dataclass(frozen=True)
class Bound:
    """From `low` to `high`, both included unless `strict`. `text` is as written."""

    text: str
    low: float
    high: float
    strict: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number satisfies the bound; NaN never does."""
        if self.strict:
            return self.low < value < self.high
        return self.low <= value <= self.high

    def apart(self, value: float) -> float:
        """How far inside the bound (or, negative, outside of it) the number is: the least is the worst case."""
        return min(value - self.low, self.high - value)


def parse_bound(text: object, *, key: str) -> Bound:
    """Raises ConfigError for what is no bound."""
    written = str(text).strip()
    if match := ONE_SIDED.fullmatch(written):
        sign, value = match[1], float(match[2])
        low, high = {">": (value, math.inf), "<": (-math.inf, value), "=": (value, value)}[sign[0]]
        return Bound(written, low, high, strict=sign in "<>")
    if match := RANGE.fullmatch(written):
        low, high = float(match[1]), float(match[2])
    else:
        match = AROUND.fullmatch(written)
        require(match, key, RULE, text)
        assert match
        centre, margin = float(match[1]), float(match[2])
        margin *= abs(centre) / 100 if match[3] else 1
        low, high = centre - margin, centre + margin
    require(low < high, key, "must be from a smaller to a larger number", text)
    return Bound(written, low, high)
