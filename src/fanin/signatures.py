"""What a function accepts: config keys are checked against it, so that a typo is refused by name."""

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, signature
from typing import Any

from fanin.errors import ConfigError, unknown

NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `name` is a parameter of its own (to be swallowed by a **kwargs does not count)."""
    parameter = signature(function).parameters.get(name)
    return parameter is not None and parameter.kind in NAMED


def asked(function: Callable[..., Any], **offered: object) -> dict[str, Any]:
    """Those of `offered` that `function` names among its parameters."""
    return {name: value for name, value in offered.items() if accepts(function, name)}


def check_options(
    function: Callable[..., Any],
    options: Mapping[str, object],
    *,
    group: str,
    supplied: Collection[str] = (),
    offered: Collection[str] = (),
) -> None:
    """Check that `options`, keys of config group `group`, suit `function`, which is given `supplied`, too; of
    `offered` it would be given those that it named.

    Raises ConfigError for an option that the function does not take, and for one that it lacks.
    """
    parameters = signature(function).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind in NAMED]
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        for name in options:
            if name not in named:
                own = [name for name in named if name in options or name not in supplied]
                out = f"~{group}.{name} leaves it out"
                if not own:
                    raise ConfigError(f"{group}.{name}: {label(function)} takes no options; {out}")
                raise ConfigError(f"{unknown(group, name, own)} (of {label(function)}; {out})")
    required = [p.name for p in parameters if p.kind in NAMED and p.default is Parameter.empty]
    for name in required:
        if name not in options and name not in supplied:
            gifts = f"; by itself it is given those of {', '.join(offered)} that it names" if offered else ""
            raise ConfigError(f"{group}.{name}: missing, and {label(function)} has no default for it{gifts}")


def label(function: Callable[..., Any]) -> str:
    """The dotted name to show to a user."""
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
