"""What decides a run's numbers, and so who a variant and a study are; and whether a changed question extends one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fanin.description import leaves
from fanin.errors import ConfigError

# What does not change the numbers a run is asked for: who runs it, where, and how it is watched.
NOT_IDENTITY = {
    "replicate": True,
    "study": True,
    "profile": True,  # what it changes is in the configuration
    "tracking": True,
    "hardware": {"precision"},  # all but these
}
WHERE_DATA_LIE = ("root", "download")


def decides(key: str) -> bool:
    """Whether a key of the configuration can change a run's numbers: what cannot is no axis."""
    group, _, name = key.partition(".")
    rule = NOT_IDENTITY.get(group, False)
    if group == "data":
        return name not in WHERE_DATA_LIE
    return name in rule if isinstance(rule, set) else not rule


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides a run's numbers."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        rule = NOT_IDENTITY.get(key)
        if rule is True:
            continue
        if isinstance(rule, set):
            value = {k: v for k, v in value.items() if k in rule}
        if key == "seeds":  # those that are the replicate's anyway change nothing
            value = {k: v for k, v in value.items() if v is not None}
            if not value:
                continue
        if key == "data":
            value = {k: v for k, v in value.items() if k not in WHERE_DATA_LIE}
        kept[key] = value
    return kept


def hash_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "key: old -> new" for every leaf that differs."""
    before, after = dict(leaves(old)), dict(leaves(new))
    keys = sorted({k for k in {*before, *after} if before.get(k) != after.get(k)})
    return [f"{k}: {before.get(k, '(absent)')} -> {after.get(k, '(absent)')}" for k in keys]


def check_extension(old: Mapping[str, Any], new: Mapping[str, Any], *, flag: str = "--extend") -> None:
    """Raise ConfigError, with the lines in the way, for what is no extension."""
    blocked = obstacles(old, new)
    if blocked:
        raise ConfigError(f"{flag} adds points and replicates; this changes more:\n  " + "\n  ".join(blocked))


def obstacles(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """An extension may add points and replicates, nothing else: the lines of the difference that are more."""
    free = ("space", "replicates", "racing", "sampler.")
    blocked = [line for line in difference(old, new) if not line.startswith(free)]
    if new["replicates"] < old["replicates"]:
        blocked.append(f"replicates: {old['replicates']} -> {new['replicates']} (can only grow)")
    return blocked
