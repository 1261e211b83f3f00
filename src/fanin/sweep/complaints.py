"""Hydra's and OmegaConf's complaints as one line: the key, the rule, the nearest valid choice."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from fanin.errors import ConfigError, nearest, unknown
from fanin.sweep.grammar import malformed


class Known(Protocol):
    """What a configuration offers: a Composer knows."""

    @property
    def groups(self) -> Sequence[str]: ...
    def options(self, group: str) -> Sequence[str]: ...
    def known_keys(self) -> Sequence[str]: ...
    def default(self, key: str) -> Any: ...


@contextmanager
def friendly_errors(configuration: Known) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's exceptions into a ConfigError that names key, rule and nearest choice."""
    try:
        yield
    except OverrideParseException as error:
        raise malformed(str(error.override), error) from error
    except MissingConfigException as error:
        raise _missing_choice(error, configuration) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be set, has no default") from error
    except InterpolationResolutionError as error:
        raise _unresolved(error) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _composition_error(error, configuration) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(error) from error


def _missing_choice(error: MissingConfigException, configuration: Known) -> ConfigError:
    found = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    name = found.group(1) if found else str(error.missing_cfg_file or "")
    group, _, choice = name.rpartition("/")
    options = error.options or (configuration.options(group) if group else [])
    if not options:
        near = nearest(group, configuration.groups) if group else None
        hint = f"; did you mean {near!r}?" if near else ""
        return ConfigError(f"{group or name}: there is no such group of choices in conf/{hint}")
    return unknown(group, choice, options)


def _unresolved(error: InterpolationResolutionError) -> ConfigError:
    """${oc.env:NAME} without a NAME in the environment, and the like."""
    missing = re.search(r"Environment variable '(\w+)' not found", str(error))
    if missing:
        return ConfigError(f"{error.full_key}: the environment variable {missing.group(1)} must be set")
    return ConfigError(f"{error.full_key}: cannot be resolved: {_first_line(error)}")


def _composition_error(error: Exception, configuration: Known) -> ConfigError:
    text = str(error)
    found = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if found:
        key = str(getattr(error, "full_key", None) or found.group(1) or found.group(2))
        return _unknown_setting(key, error.__cause__) if key.startswith("hydra.") else unknown_key(key, configuration)
    merged = re.match(r"Error merging override \+*([^=]+)=", text)
    if merged:
        return ConfigError(f"{merged.group(1)}: {_first_line(error.__cause__ or error)}")
    composing = re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)", text)
    if composing:
        return _file_error(composing.group(1), composing.group(2), re.search(r"full_key: (\S+)", text))
    return ConfigError(_first_line(error))


def _unreadable(error: yaml.YAMLError | UnicodeDecodeError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ConfigError(f"a configuration file is no YAML text: {_first_line(error)}")
    problem = " ".join(str(part) for part in (getattr(error, "context", None), error.problem) if part)  # type: ignore[union-attr]
    return ConfigError(f"{mark.name}, line {mark.line + 1}: is no valid YAML: {problem}")


def _file_error(file: str, problem: str, key: re.Match[str] | None) -> ConfigError:
    if "Cannot merge" in problem:
        problem = (
            "a list is given where a mapping belongs, or the reverse: study.zip and study.points are lists, "
            "study.when and hydra.sweeper.params mappings"
        )
    return ConfigError(f"{file}.yaml: {f'{key.group(1)}: ' if key else ''}{problem}")


def _unknown_setting(key: str, cause: BaseException | None) -> ConfigError:
    """One of Hydra's own settings; the cause knows what there is beside it."""
    here = [str(name) for name in getattr(cause, "parent_node", None) or () if not str(name).startswith("_")]
    near = nearest(key.rpartition(".")[2], here)
    parent = key.rpartition(".")[0]
    hint = f"; did you mean {parent}.{near}?" if near else ""
    return ConfigError(f"{key}: no such key{hint}; {parent} has {', '.join(here)}")


def unknown_key(key: str, configuration: Known) -> ConfigError:
    """No such key: suggest the nearest one at the same place, then one of that name anywhere."""
    known = configuration.known_keys()
    parent, _, name = key.rpartition(".")
    if key in known and f"{parent}._target_" in known:
        return ConfigError(f"{key}: no such key with the {parent} that was chosen; others have it")
    mapping = key if key in known else parent
    if mapping in known and not any(k.startswith(f"{mapping}.") for k in known):
        return ConfigError(f"{key}: {_instead(mapping, name, configuration.default(mapping))}")
    here = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    close = [k for k in known if k.rpartition(".")[2] == name]
    if near := nearest(name, here, cutoff=0.8 if close else 0.5):
        close = [f"{parent}.{near}".lstrip("."), *close]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    there = f"; {parent or 'the root'} has {', '.join(here)}" if here else ""
    new = f" (+{key}=... adds an argument)" if f"{parent}._target_" in known else ""
    return ConfigError(f"{key}: no such key{hint}{there}{new}")


def _instead(key: str, name: str, value: Any) -> str:
    """How to set `name` under a key that has no keys: it is null, an empty mapping, or a value."""
    if value is None:
        return f"{key} is null and is set as a whole: {key}={{{name}: ...}}"
    if isinstance(value, Mapping):
        return f"keys are added to {key} with a plus: +{key}={{...}}"
    return f"no such key: {key} is a value, {value!r}"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())
