"""What the user typed wrong: refused at the border, with the key, the rule and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Bad input. The message names the key, the rule it breaks and the nearest valid choice."""


def unknown(key: str, value: object, options: Iterable[object]) -> ConfigError:
    """An error for a `value` of `key` that is none of `options`, with the nearest one suggested."""
    names = sorted(str(option) for option in options)
    close = get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"{key}: {value!r} is not one of: {', '.join(names)}{hint}")


def require(condition: object, key: str, rule: str, value: object) -> None:
    """Raise a ConfigError "`rule` must hold" unless `condition` is true."""
    if not condition:
        raise ConfigError(f"{key}: {rule}, got {value!r}")
