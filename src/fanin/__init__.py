"""fanin sweeps weight initializers, regularizers, optimizers and architectures, and says which of them matter.

The results of a study as DataFrames:

    import fanin
    fanin.runs("initializers")      # one row per run
    fanin.curves("initializers")    # one row per point of every curve
    fanin.layers("initializers")    # one row per layer and epoch
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.query import curves, layers, runs, studies

__all__ = ["curves", "layers", "runs", "studies"]


def __getattr__(name: str) -> Any:
    """Imported at the first use: a training worker needs none of them, nor pandas."""
    if name in __all__:
        return getattr(import_module("fanin.query"), name)
    raise AttributeError(f"module 'fanin' has no attribute {name!r}")
