"""Which keys a configuration has: one that is missing, misspelt or misplaced is refused by name.

The project's own conf/config.yaml with its default choices says which keys there are. Hydra itself accepts
any new key in a file, so that `epcohs: 20` in a study would silently train for the default number of epochs.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fanin.errors import ConfigError, nearest

# Groups that name a callable: their further keys are its arguments, and it has the last word on them.
NEEDED = {
    "model": ("_target_",),
    "initializer": ("_target_",),
    "optimizer": ("_target_", "batch"),
    "scheduler": ("_target_", "every"),
    "data": ("_target_", "shape", "classes", "val", "n_train", "scale"),
}


# What this version of fanin looks for in a project's own conf/, which may have been copied from an earlier one.
LOOKED_FOR = {
    "": ("epochs", "batch_size", "seed", "replicate", "seeds", "stats", "profile", "test_weights", "study", "hardware"),
    "study": (
        *("name", "question", "metric", "direction", "replicates", "racing", "preflight", "prune_on"),
        *("on_divergence", "warm_start", "zip", "points", "when", "criteria", "profiles"),
    ),
    "hardware": ("device", "threads", "workers", "gpus_per_run", "precision", "patience", "checkpoint", "cluster"),
}


def check_version(config: Mapping[str, Any]) -> None:
    """Whether conf/ has the keys that are looked for. Raises ConfigError."""
    for group, keys in LOOKED_FOR.items():
        there = config[group] if group else config
        for key in keys:
            name = f"{group}.{key}".lstrip(".")
            file = "conf/hardware/" if group == "hardware" else "conf/config.yaml"
            if key not in there:
                raise ConfigError(f"{name}: {file} has no such key: it is of another version of fanin")


def check_keys(
    config: Mapping[str, Any], *, default: Mapping[str, Any], added: Collection[str] = (), study: str | None = None
) -> None:
    """Compare `config` with the `default` one. Keys `added` on purpose (with a +) are free at the root, where
    interpolations may need them. `study`: the file in sweeps/ it was composed of. Raises ConfigError."""
    if "sweeps" in config and "sweeps" not in default:
        raise ConfigError(f"sweeps/{study}.yaml: a study file's first line must be `# @package _global_`")
    _compare({k: v for k, v in config.items() if k not in added}, default, prefix="")
    for group, value in config.items():
        if group in NEEDED:
            _check_part(group, value)
        elif isinstance(default.get(group), Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{group}: must be a mapping with {', '.join(default[group])}, got {value!r}")
            _compare(value, default[group], prefix=f"{group}.")


def dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key, with those it is inside of."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def _compare(config: Mapping[str, Any], default: Mapping[str, Any], *, prefix: str) -> None:
    for key in config:
        if key not in default:
            close = nearest(key, list(default))
            hint = f"; did you mean {prefix}{close}?" if close else ""
            raise ConfigError(f"{prefix}{key}: no such key{hint}; there are {', '.join(map(str, default))}")
    for key in default:
        if key not in config:
            raise ConfigError(f"{prefix}{key}: is needed, and cannot be removed")


def _check_part(group: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{group}: must be a mapping with _target_, got {value!r}")
    missing = [key for key in NEEDED[group] if key not in value]
    if missing:
        keys = ", ".join(f"{group}.{key}" for key in missing)
        are = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{keys}: {are} needed; see the other files in conf/{group}/, and docs/own_parts.md")
