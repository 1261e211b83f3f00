"""How axes hang together: zipped axes, and axes that exist only under some values of others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fanin.errors import ConfigError, require, unknown
from fanin.sweep.space import DISCRETE, Axis, Condition, bare, same


def zip_axes(axes: Sequence[Axis], group: Sequence[str]) -> list[Axis]:
    """Replace the axes named by `group` with one that walks them in step."""
    key = "study.zip"
    names = {axis.name: axis for axis in axes}
    for name in group:
        if bare(name) not in names:
            raise unknown(key, name, names)
    members = [names[bare(name)] for name in dict.fromkeys(group)]
    require(len(members) > 1, key, "at least two different keys walk in step", list(group))
    for axis in members:
        require(
            axis.kind in ("choice", "range"),
            key,
            "only lists and ranges can be zipped",
            f"{axis.key}={axis.text}",
        )
    lengths = {axis.key: axis.size for axis in members}
    require(len(set(lengths.values())) == 1, key, "zipped axes must have equally many values", lengths)
    rows = list(zip(*(axis.values for axis in members), strict=True))
    keys = [axis.key for axis in members]
    walked = Axis(
        "|".join(keys),
        "zip",
        tuple("|".join(row) for row in rows),
        assignments=tuple(dict(zip(keys, row, strict=True)) for row in rows),
    )
    first, *others = members
    return [walked if axis is first else axis for axis in axes if axis not in others]


def condition_axes(
    axes: Sequence[Axis], when: Mapping[str, Mapping[str, Sequence[str]]], settled: Mapping[str, str]
) -> list[Axis]:
    """Attach the conditions (axis name -> other key -> its values). One on a key that is `settled` (fixed) is
    decided here: the axis stays, unconditionally, or goes, and with it whatever depends on it."""
    for name in when:
        if name not in {*settled, *(axis.name for axis in axes)}:
            raise unknown("study.when", name, [axis.name for axis in axes])
    parents = {axis.name: when.get(axis.name, {}) for axis in axes}
    gone: set[str] = set()
    while True:
        lost = {name for name, asked in parents.items() if name not in gone and _fails(asked, settled, gone)}
        if not lost:
            break
        gone |= lost
    kept = [axis for axis in axes if axis.name not in gone]
    open_ = {axis.name: {p: v for p, v in parents[axis.name].items() if p not in settled} for axis in kept}
    return [
        replace(axis, when=tuple(_condition(axis, p, v, kept) for p, v in open_[axis.name].items())) for axis in kept
    ]


def _fails(asked: Mapping[str, Sequence[str]], settled: Mapping[str, str], gone: set[str]) -> bool:
    return any(
        parent in gone or (parent in settled and not any(same(settled[parent], value) for value in values))
        for parent, values in asked.items()
    )


def _condition(axis: Axis, parent: str, values: Sequence[str], axes: Sequence[Axis]) -> Condition:
    key = f"study.when.{axis.name}"
    offered = _offered(parent, axes)
    if not offered:
        raise unknown(key, parent, [bare(k) for other in axes if other is not axis for k in other.keys])
    require(parent not in [bare(k) for k in axis.keys], key, "an axis cannot depend on itself", parent)
    spelled = []
    for value in values:
        match = next((text for text in offered if same(text, value)), None)
        if match is None:
            raise unknown(f"{key}.{parent}", value, offered)
        spelled.append(match)
    return Condition(parent, tuple(spelled))


def _offered(parent: str, axes: Sequence[Axis]) -> list[str]:
    """Every text that `parent` can be set to; none when no axis with a list of values sets it."""
    sets = [axis.assign(value) for axis in axes if axis.kind in DISCRETE for value in axis.values]
    return list(dict.fromkeys(text for a in sets for key, text in a.items() if bare(key) == parent))


def order(axes: Sequence[Axis]) -> list[Axis]:
    """The axes in the order given, but every one after those it depends on."""
    waiting, result, known = list(axes), [], set[str]()
    while waiting:
        ready = next((a for a in waiting if {bare(c.key) for c in a.when} <= known), None)
        if ready is None:
            raise ConfigError(f"study.when: the axes depend on each other in a circle: {[a.name for a in waiting]}")
        waiting.remove(ready)
        result.append(ready)
        known |= {bare(key) for key in ready.keys}
    return result
