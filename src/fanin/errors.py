"""What the user typed wrong: refused at the border, with the key, the rule and the way out."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LISTED = 30  # choices that are listed in full; of more, only the nearest


class ConfigError(ValueError):
    """Bad input. The message names the key, the rule it breaks and the nearest valid choice."""


def unknown(key: str, value: object, options: Iterable[object]) -> ConfigError:
    """An error for a `value` of `key` that is none of `options`, with the nearest one suggested."""
    names = sorted(str(option) for option in options)
    close = nearest(value, names)
    hint = f"; did you mean {close!r}?" if close else ""
    if len(names) > LISTED:
        some = get_close_matches(str(value), names, n=5, cutoff=0.0)
        return ConfigError(f"{key}: {value!r} is none of its {len(names)} choices: {', '.join(some)}, ...{hint}")
    return ConfigError(f"{key}: {value!r} is not one of: {', '.join(names)}{hint}")


def nearest(value: object, names: Sequence[str], *, cutoff: float = 0.5) -> str | None:
    """The name that `value` was probably meant to be, if there is one as similar as `cutoff` (0 to 1): case does
    not count."""
    folded = {name.lower(): name for name in names}
    close = get_close_matches(str(value).lower(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def require(condition: object, key: str, rule: str, value: object) -> None:
    """Raise a ConfigError "`rule` must hold" unless `condition` is true."""
    if not condition:
        raise ConfigError(f"{key}: {rule}, got {value!r}")
