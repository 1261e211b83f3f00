"""When a recorded param is the value that a criterion names."""

from typing import Any

from fanin.description import render


def same(cell: Any, value: Any) -> bool:
    """As numbers, else as YAML spells both."""
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return spelt(cell) == spelt(value)


def spelt(value: Any) -> str:
    return render(bool(value) if type(value).__name__ in ("bool", "bool_") else value)
