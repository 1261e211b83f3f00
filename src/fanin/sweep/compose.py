"""From overrides to a resolved run configuration.

Composing costs Hydra about 70 ms. A grid asks for hundreds of configurations that differ in a few numbers, so
a composition is kept per set of group choices, and plain `key=value` overrides are laid over a copy of it:
what Hydra itself does with them. Combinations of choices are assembled from compositions of one choice each
(assembly.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fanin.errors import ConfigError, unknown
from fanin.sweep.assembly import Composed, Plainness, assemble
from fanin.sweep.complaints import friendly_errors
from fanin.sweep.keys import check_keys, dotted

LISTS = ("regularization",)  # groups of which several choices hold at once


@dataclass(frozen=True)
class Composition:
    """One composed configuration, resolved to plain Python: `config` without hydra's node, and the `choices`
    made for each group (`{"initializer": "he_normal", ...}`). `state` is tracking.state, which no configuration
    keeps: it may have a password, and configurations go to disk, to workers and to MLflow."""

    config: dict[str, Any]
    choices: dict[str, str]
    state: str | None = field(default=None, repr=False)


class Composer:
    """Composes run configurations from a base (`fixed` overrides) and a variant's overrides."""

    def __init__(
        self, loader: ConfigLoader, *, config_name: str | None, fixed: Sequence[str] = (), own: bool = True
    ) -> None:
        """`own`: fanin's configuration, all of it resolved; a foreign one may need a running job for that."""
        self.own = own
        self.loader = loader
        self.config_name = config_name
        self.fixed = list(fixed)
        self._parser = OverridesParser.create(config_loader=loader)
        self._kept: dict[tuple[str, ...], Composed] = {}
        self._groups: dict[str, bool] = {}
        self._plainness = Plainness(loader)

    def compose(self, overrides: Iterable[str] = ()) -> Composition:
        """The resolved configuration under `overrides`; raises ConfigError for what cannot be composed."""
        overrides = list(overrides)
        with friendly_errors(self):
            parsed = [*self._parsed, *self._parser.parse_overrides(overrides)]
            for override in parsed:
                self._check_choice(override)
            plain = [o for o in parsed if self._is_plain(o)]
            composed = self._choose([o for o in parsed if not self._is_plain(o)], varied=set(overrides))
            config, choices = composed.copy(), composed.choices
            for override in plain:
                _lay_over(config, override, check=self.own)
            resolved = _plain(config, resolve=self.own, complete=self.own)
        if self.own:
            study = next((str(o.value()) for o in parsed if o.key_or_group == "sweeps"), None)
            added = [o.key_or_group for o in parsed if o.is_add()]
            check_keys(resolved, default=self._default, added=added, study=study)
            choices = _named(choices, resolved)
        state = _take_out(resolved.get("tracking"), "state") if self.own else None
        return Composition(config=resolved, choices=choices, state=state)

    def is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self.loader.get_group_options(key))
        return self._groups[key]

    def options(self, group: str) -> list[str]:
        return [str(name) for name in self.loader.get_group_options(group)]

    @property
    def groups(self) -> list[str]:
        return list(self._load(()).choices)

    def known_keys(self) -> list[str]:
        """Every dotted key of the default configuration and every group: for 'did you mean'."""
        default = self._load(())
        return sorted({*dotted(_plain(default.config)), *default.choices})

    def default(self, key: str) -> Any:
        """What the default configuration has at a dotted key, unresolved; nothing counts as no keys."""
        value: Any = self._default
        for name in key.split("."):
            value = value.get(name, {})
        return value

    @cached_property
    def _parsed(self) -> list[Override]:
        return self._parser.parse_overrides(self.fixed)

    @cached_property
    def _default(self) -> dict[str, Any]:
        """The default configuration, unresolved: which keys there are."""
        return _plain(self._load(()).config)

    def _check_choice(self, override: Override) -> None:
        """A group takes the name of one of its files. Raises ConfigError for anything else."""
        key, text = override.key_or_group, str(override.input_line)
        if not key:
            raise ConfigError(f"{text}: an override is key=value, as in epochs=20")
        if override.is_delete() or not self.is_group(key):
            return
        value = override.value()
        if isinstance(value, list) and self.own and key not in LISTS:
            raise ConfigError(f"{key}: takes one choice, got {text}; to run each: -m {key}={','.join(map(str, value))}")
        if not isinstance(value, str | list):
            raise unknown(key, text.partition("=")[2], self.options(key))

    def _is_plain(self, override: Override) -> bool:
        return (
            override.type == OverrideType.CHANGE
            and override.package is None
            and not override.is_hydra_override()
            and not self.is_group(override.key_or_group)
        )

    def _choose(self, overrides: Sequence[Override], *, varied: set[str]) -> Composed:
        """The composition under overrides that are not plain; those `varied` differ between variants."""
        texts = [str(o.input_line) for o in overrides]
        choices = {
            o.key_or_group: text
            for o, text in zip(overrides, texts, strict=True)
            if text in varied and o.type == OverrideType.CHANGE and self._plainness.holds(o)
        }
        if len(choices) > 1 and not any(o.is_delete() for o in overrides):  # ~key may be a key of one choice only
            core = tuple(text for text in texts if text not in choices.values())
            parts = {group: self._load((*core, text)) for group, text in choices.items()}
            if assembled := assemble(self._load(core), parts, plainness=self._plainness):
                return assembled
        return self._load(tuple(texts))

    def _load(self, overrides: tuple[str, ...]) -> Composed:
        """What Hydra composes; asked once."""
        if overrides not in self._kept:
            self._kept[overrides] = self._ask_hydra(overrides)
        return self._kept[overrides]

    def _ask_hydra(self, overrides: tuple[str, ...]) -> Composed:
        config = self.loader.load_configuration(
            config_name=self.config_name, overrides=list(overrides), run_mode=RunMode.RUN
        )
        choices = {k: str(v) for k, v in config.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        choices.pop("sweeps", None)
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        OmegaConf.set_struct(config, True)
        return Composed(config, choices)


def _lay_over(config: DictConfig, override: Override, *, check: bool) -> None:
    key, value = override.key_or_group, override.value()
    if check:
        _check_kind(key, OmegaConf.select(config, key), value)
    OmegaConf.update(config, key, value, merge=True)


def _check_kind(key: str, old: Any, value: Any) -> None:
    """What can be told from the value it replaces; each part checks its own ranges when it is built."""
    if isinstance(value, str) and value.startswith("${"):
        return
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: must be true or false, got {value!r}")
    elif isinstance(old, int | float) and isinstance(value, bool | str | list | dict):
        raise ConfigError(f"{key}: must be a number, got {value!r}")
    elif isinstance(old, DictConfig) and old and not isinstance(value, dict):
        keys = ", ".join(f"{key}.{name!s}" for name in _plain(old))
        raise ConfigError(f"{key}: is set by its keys ({keys}), got {value!r}")


def _named(choices: dict[str, str], config: dict[str, Any]) -> dict[str, str]:
    """A list choice, `regularization=[dropout,batchnorm]`, has no name in Hydra; here: batchnorm+dropout."""
    applied = (config.get("regularization") or {}).get("applied")
    if not isinstance(applied, dict):
        return choices
    return {**choices, "regularization": "+".join(sorted(applied)) or "none"}


def _take_out(config: Any, key: str) -> Any:
    """The value at a key, which is null from now on; null if there is no such key."""
    if not isinstance(config, dict) or key not in config:
        return None
    value, config[key] = config[key], None
    return value


def _plain(config: DictConfig, *, resolve: bool = False, complete: bool = False) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=complete)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
