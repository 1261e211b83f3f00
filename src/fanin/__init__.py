"""fanin sweeps weight initializers, regularizers, optimizers and architectures, and says which of them matter.

The results of a study as DataFrames:

    import fanin
    fanin.runs("initializers")      # one row per run
    fanin.curves("initializers")    # one row per point of every curve
    fanin.layers("initializers")    # one row per layer and epoch
    fanin.compare("initializers")   # which value is better, and how sure that is
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.comparison import compare
    from fanin.query import curves, layers, runs, studies

__all__ = ["compare", "curves", "layers", "runs", "studies"]


def __dir__() -> list[str]:
    """What a notebook completes."""
    return __all__


def __getattr__(name: str) -> Any:
    """Imported at the first use: a training worker needs none of them, nor pandas."""
    if name not in __all__:
        raise AttributeError(f"module 'fanin' has no attribute {name!r}")
    return getattr(import_module("fanin.comparison" if name == "compare" else "fanin.query"), name)
