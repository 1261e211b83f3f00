"""From overrides to a resolved run configuration; Hydra's complaints become one-line ConfigErrors.

Composing costs Hydra about 70 ms. A grid asks for hundreds of configurations that differ in a few numbers, so
a composition is kept per set of group choices, and plain `key=value` overrides are laid over a copy of it:
what Hydra itself does with them.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fanin.errors import ConfigError, unknown

# Choices people look for and cannot have, with the reason.
REFUSED = {
    "optimizer/sparse_adam": "it needs sparse gradients, and no layer here makes them (only nn.Embedding with "
    "sparse=True does); optimizer=adam is the same rule for dense gradients",
}


@dataclass(frozen=True)
class Composition:
    """One composed configuration, resolved to plain Python: `config` without hydra's node, and the `choices`
    made for each group (`{"initializer": "he_normal", ...}`)."""

    config: dict[str, Any]
    choices: dict[str, str]


class Composer:
    """Composes run configurations from a base (`fixed` overrides) and a variant's overrides."""

    def __init__(
        self, loader: ConfigLoader, *, config_name: str | None, fixed: Sequence[str] = (), own: bool = True
    ) -> None:
        """`own`: fanin's configuration, all of it resolved; a foreign one may need a running job to resolve."""
        self.own = own
        self.loader = loader
        self.config_name = config_name
        self.fixed = list(fixed)
        self._parser = OverridesParser.create(config_loader=loader)
        self._kept: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, overrides: Iterable[str] = ()) -> Composition:
        """The resolved configuration under `overrides`; raises ConfigError for what cannot be composed."""
        overrides = list(overrides)
        with friendly_errors(self):
            parsed = self._parser.parse_overrides([*self.fixed, *overrides])
            plain = [o for o in parsed if self._is_plain(o)]
            rest = tuple(str(o.input_line) for o in parsed if not self._is_plain(o))
            if rest not in self._kept:
                self._kept[rest] = self._load(rest)
            base, choices = self._kept[rest]
            config = copy.deepcopy(base)
            for override in plain:
                _lay_over(config, override)
            resolved = OmegaConf.to_container(config, resolve=self.own, throw_on_missing=True)
        assert isinstance(resolved, dict)
        return Composition(config={str(k): v for k, v in resolved.items()}, choices=_named(choices, resolved) if self.own else choices)

    def is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self.loader.get_group_options(key))
        return self._groups[key]

    def options(self, group: str) -> list[str]:
        return list(self.loader.get_group_options(group))

    def known_keys(self) -> list[str]:
        """Every dotted key of the default configuration and every group: for 'did you mean'."""
        config, choices = self._kept.get(()) or self._load(())
        return sorted({*_dotted(config), *choices})

    def _is_plain(self, override: Override) -> bool:
        return (
            override.type == OverrideType.CHANGE
            and override.package is None
            and not override.is_hydra_override()
            and not self.is_group(override.key_or_group)
        )

    def _load(self, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        config = self.loader.load_configuration(
            config_name=self.config_name, overrides=list(overrides), run_mode=RunMode.RUN
        )
        choices = {k: str(v) for k, v in config.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        choices.pop("sweeps", None)
        config = OmegaConf.masked_copy(config, [k for k in config if k != "hydra"])
        OmegaConf.set_struct(config, True)
        return config, choices


def _lay_over(config: DictConfig, override: Override) -> None:
    key, value = override.key_or_group, override.value()
    old = OmegaConf.select(config, key)
    if isinstance(old, (int, float)) and not isinstance(old, bool) and isinstance(value, str):
        if not value.startswith("${"):
            raise ConfigError(f"{key}: must be a number, got {value!r}")
    OmegaConf.update(config, key, value, merge=True)


def _named(choices: dict[str, str], config: dict[Any, Any]) -> dict[str, str]:
    """A list choice (`regularization=[dropout,batchnorm]`) has no name in Hydra; give it one: dropout+batchnorm."""
    applied = (config.get("regularization") or {}).get("applied")
    if not isinstance(applied, dict):
        return choices
    return {**choices, "regularization": "+".join(sorted(applied)) or "none"}


def _dotted(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _dotted(node, f"{prefix}{key}.")


@contextmanager
def friendly_errors(composer: Composer) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's exceptions into a ConfigError that names key, rule and nearest choice."""
    try:
        yield
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override}: not an override of the form key=value ({_first_line(error)})"
        ) from error
    except MissingConfigException as error:
        raise _missing_choice(error) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be set, has no default") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _composition_error(error, composer) from error


def _missing_choice(error: MissingConfigException) -> ConfigError:
    found = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    name = found.group(1) if found else str(error.missing_cfg_file or "")
    if name in REFUSED:
        return ConfigError(f"{name.replace('/', '=')}: refused: {REFUSED[name]}")
    group, _, choice = name.rpartition("/")
    if not group or not error.options:
        return ConfigError(_first_line(error))
    return unknown(group, choice, error.options)


def _composition_error(error: Exception, composer: Composer) -> ConfigError:
    text = str(error)
    found = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if not found:
        return ConfigError(_first_line(error))
    key = getattr(error, "full_key", None) or found.group(1) or found.group(2)
    return unknown_key(str(key), composer)


def unknown_key(key: str, composer: Composer) -> ConfigError:
    """No such key: suggest the nearest one at the same place, then anywhere."""
    known = composer.known_keys()
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    error = unknown("key", key, siblings or known)
    return ConfigError(f"{error} (a new key is added with +{key}=...)")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())
