"""Whose fault an exception is: what a user's own class or function raises is bad input, with its line."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fanin.errors import ConfigError, nearest
from fanin.signatures import label


@contextmanager
def blaming(key: str, function: Callable[..., Any]) -> Iterator[None]:
    """What `function`, which config key `key` names, raises inside is raised as a ConfigError.

    Of our own functions only a ConfigError is bad input; anything else is a bug of ours, and passes as it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a user's code may raise anything
        if (getattr(function, "__module__", None) or "").startswith("fanin."):
            raise
        raise ConfigError(f"{key}: {label(function)} raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The exception in one line, with the last line of the project's own code that it passed."""
    text = " ".join(str(error).split())
    here = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    where = f" ({Path(here[-1].filename).name}, line {here[-1].lineno})" if here else ""
    if isinstance(error, SyntaxError):  # says itself where it is
        where = ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def meant(error: Exception) -> str:
    """What an import that failed was probably of: a name in its module, or a module in the project folder."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        names = [name for name, value in vars(error.obj).items() if callable(value) and not name.startswith("_")]
    elif isinstance(error, ModuleNotFoundError):
        names = [path.stem for path in Path.cwd().glob("*.py")]
    else:
        return ""
    near = nearest(error.name, names, cutoff=0.7)
    return f"; did you mean {near!r}?" if near else ""


def _is_users(file: str) -> bool:
    path = Path(file)
    ours = Path(__file__).parent in path.parents  # in a clone, fanin itself lies in the project folder
    return Path.cwd() in path.parents and "site-packages" not in path.parts and not ours
