"""What `fanin doctor` says of one thing."""

from collections.abc import Sized
from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    level: str  # ok | note | PROBLEM
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.subject:<10}{self.text}"


def number_of(things: Sized, one: str, many: str = "") -> str:
    return f"{len(things):,} {one if len(things) == 1 else many or one + 's'}"
