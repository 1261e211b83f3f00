"""Options of samplers and pruners: which there are, and whether the ones given fit."""

from collections.abc import Mapping
from typing import Any

from fanin.errors import require, unknown


def check_options(key: str, options: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of the choice `options["name"]`, as `known` types them; None means Optuna's default and is
    left out. Raises ConfigError for an unknown name, an unknown option and a value of another type."""
    name = str(options.get("name"))
    if name not in known:
        raise unknown(f"{key}.name", name, known)
    given = {option: value for option, value in options.items() if option != "name" and value is not None}
    for option, value in given.items():
        if option not in known[name]:
            raise unknown(f"{key} ({name})", option, known[name] or ["(it has no options)"])
        kind = known[name][option]
        wanted = (int, float) if kind is float else kind
        fits = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
        require(fits, f"{key}.{option}", f"must be of type {kind.__name__}", value)
    return given
