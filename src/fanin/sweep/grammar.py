"""From override texts to a Space: the reader of `hydra.sweeper.params` and of sweeps on the command line.

    params:
      initializer: xavier_uniform,he_normal            a list; group choices may be lists: none,[dropout,batchnorm]
      model: glob(mlp*)                                every choice of the group that matches
      optimizer.lr: tag(log,interval(1e-4,1e-1))       floats, both ends included; only a search can take it
      batch_size: int(tag(log,interval(16,512)))       integers, both ends included
      regularization.dropout: range(0,0.6,0.1)         numbers, the end excluded (Hydra's rule)
      optimizer.momentum: [0.8, 0.9]                   a YAML list is a list of choices
      epochs: 20                                       one value is fixed, not swept

`zipped` walks keys in step (lists of equal length), `points` lists explicit combinations, `when` makes an axis
exist only under some values of another:

    zipped: [[initializer, optimizer.lr]]
    points: [{optimizer: sgd, optimizer.lr: 0.1}, {optimizer: adam}]
    when: {optimizer.momentum: {optimizer: [momentum, nesterov]}}
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer, ValueType
from hydra.errors import HydraException

from fanin.errors import ConfigError, require, unknown
from fanin.sweep.space import DISCRETE, Axis, Condition, Space, bare, same

PARAMS = "hydra.sweeper.params"


def parse(
    params: Mapping[str, Any] | None,
    *,
    overrides: Sequence[str] = (),
    loader: ConfigLoader | None = None,
    zipped: Sequence[Sequence[str]] = (),
    points: Sequence[Mapping[str, Any]] = (),
    when: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Space:
    """The space of `params` and the command line's `overrides`, which win over params of the same key. `loader`
    is needed for `glob`; `seed` orders `shuffle`. Raises ConfigError for whatever cannot be understood."""
    lines = _lines(params or {})
    lines.update({bare(_key_of(line)): line for line in overrides})
    parser = OverridesParser.create(config_loader=loader)
    axes: list[Axis] = []
    fixed: list[Override] = []
    for line in lines.values():
        override = _parse(parser, line)
        if override.is_sweep_override():
            axes.append(_axis(override, seed=seed))
        else:
            fixed.append(override)
    if points:
        axes.insert(0, _points(points, parser))
    for group in zipped:
        axes = _zip(axes, group)
    _refuse_double_keys([*axes], fixed)
    axes = _ordered(_conditional(axes, when or {}, fixed))
    return Space(axes=tuple(axes), fixed=tuple(str(override.input_line) for override in fixed))


def _lines(params: Mapping[str, Any]) -> dict[str, str]:
    return {bare(str(key)): f"{key}={_sweep_text(str(key), value)}" for key, value in params.items()}


def _sweep_text(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        raise ConfigError(
            f"{PARAMS}.{key}: the space is written in Hydra's override grammar, e.g. 'a,b', 'range(1,5)', "
            f"'interval(0,1)' or 'tag(log,interval(1e-4,1e-1))', got the mapping {dict(value)!r}"
        )
    if not isinstance(value, Sequence) or isinstance(value, str):
        return text_of(value)
    require(len(value) > 0, f"{PARAMS}.{key}", "a list of choices needs at least one", list(value))
    texts = [text_of(item) for item in value]
    return ",".join(texts) if len(texts) > 1 else f"choice({texts[0]})"


def text_of(value: Any) -> str:
    """A YAML value as override text; a string is taken to be override text already."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(text_of(item) for item in value) + "]"
    return str(value)


def _key_of(line: str) -> str:
    return line.partition("=")[0]


def _parse(parser: OverridesParser, line: str) -> Override:
    try:
        override = parser.parse_override(line)
    except (HydraException, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(f"{_key_of(line)}: not in Hydra's override grammar: {line!r} ({reason})") from error
    if override.is_sweep_override() and override.is_hydra_override():
        raise ConfigError(f"{override.key_or_group}: Hydra's own settings hold for the whole sweep, cannot be swept")
    return override


def _axis(override: Override, *, seed: int) -> Axis:
    key, sweep = override.get_key_element(), override.value()
    tags = set(getattr(sweep, "tags", ()))
    for tag in tags - {"log"}:
        raise unknown(f"{key}: tag", tag, ["log"])
    if isinstance(sweep, IntervalSweep):
        return _interval(key, sweep, log="log" in tags)
    if isinstance(sweep, RangeSweep):
        return _range(key, sweep, log="log" in tags, seed=seed)
    require(not tags, key, "tag(log, ...) needs numbers in order: an interval, or a range", override.input_line)
    values = _choices(override)
    if isinstance(sweep, ChoiceSweep) and sweep.shuffle:
        random.Random(f"{seed}/{key}").shuffle(values)
    require(values, key, "at least one choice must match", override.input_line)
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    require(twice is None, key, "the choices must differ from each other", twice)
    return Axis(key, "choice", tuple(values))


def _choices(override: Override) -> list[str]:
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        require(override.config_loader is not None, override.key_or_group, "glob() needs the config groups", "none")
    return [str(text) for text in override.sweep_iterator(transformer=Transformer.str)]


def _interval(key: str, sweep: IntervalSweep, *, log: bool) -> Axis:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    text = f"interval({low},{high})"
    require(low < high, key, "an interval's lower end must be below its upper end", text)
    require(abs(low) != float("inf") and abs(high) != float("inf"), key, "an interval must be finite", text)
    require(not log or low > 0, key, "a logarithmic interval must lie above 0", text)
    return Axis(key, "int" if isinstance(low, int) else "interval", low=low, high=high, log=log)


def _range(key: str, sweep: RangeSweep, *, log: bool, seed: int) -> Axis:
    assert sweep.start is not None and sweep.stop is not None
    text = f"range({sweep.start},{sweep.stop},{sweep.step})"
    require(sweep.step != 0, key, "a range's step must not be 0", text)
    whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    # In decimals, as written: 0.1 + 0.2 is 0.3 here, and range(0,1,0.1) has ten values.
    start, stop, step = (Decimal(repr(number)) for number in (sweep.start, sweep.stop, sweep.step))
    count = max(0, -(-(stop - start) // step)) if step else 0
    require(count > 0, key, "a range must not be empty", text)
    numbers = [start + i * step for i in range(int(count))]
    numbers = [number for number in numbers if (number < stop if step > 0 else number > stop)]
    require(
        not log or (whole and step == 1 and start > 0),
        key,
        "a logarithmic range has whole numbers above 0 and step 1 (or use an interval)",
        text,
    )
    values = [str(int(number)) if whole else repr(float(number)) for number in numbers]
    low, high = float(min(numbers)), float(max(numbers))
    if sweep.shuffle:
        random.Random(f"{seed}/{key}").shuffle(values)
    return Axis(key, "range", tuple(values), low=low, high=high, step=float(abs(step)), log=log)


def _points(points: Sequence[Mapping[str, Any]], parser: OverridesParser) -> Axis:
    """Explicit combinations are one axis, whose values set several keys."""
    assignments = [_assignment(point, parser) for point in points]
    labels = [" ".join(f"{key}={text}" for key, text in a.items()) for a in assignments]
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    require(twice is None, "study.points", "the points must differ from each other", twice)
    return Axis("points", "points", tuple(labels), assignments=tuple(assignments))


def _assignment(point: Mapping[str, Any], parser: OverridesParser) -> dict[str, str]:
    require(isinstance(point, Mapping) and point, "study.points", "a point maps keys to values", point)
    assignment = {}
    for key, value in point.items():
        override = _parse(parser, f"{key}={text_of(value)}")
        one = not override.is_sweep_override()
        require(one, f"study.points: {key}", "a point has one value for each key", text_of(value))
        assignment[override.get_key_element()] = override.get_value_element_as_str()
    return assignment


def _zip(axes: list[Axis], group: Sequence[str]) -> list[Axis]:
    """Replace the axes named by `group` with one that walks them in step."""
    key = "study.zip"
    names = {axis.name: axis for axis in axes}
    for name in group:
        if bare(name) not in names:
            raise unknown(key, name, names)
    members = [names[bare(name)] for name in dict.fromkeys(group)]
    require(len(members) > 1, key, "at least two different keys walk in step", list(group))
    for axis in members:
        require(axis.kind in ("choice", "range"), key, "only lists and ranges can be zipped", f"{axis.key}={axis.text}")
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
    return [walked if axis is members[0] else axis for axis in axes if axis is members[0] or axis not in members]


def _refuse_double_keys(axes: Sequence[Axis], fixed: Sequence[Override]) -> None:
    owners: dict[str, str] = {bare(override.get_key_element()): "fixed" for override in fixed}
    for axis in axes:
        for key in axis.keys:
            other = owners.get(bare(key))
            require(other is None, bare(key), "a key can be set in one place only", f"{other} and {axis.key}")
            owners[bare(key)] = axis.key


def _conditional(
    axes: Sequence[Axis], when: Mapping[str, Mapping[str, Any]], fixed: Sequence[Override]
) -> list[Axis]:
    """Attach the conditions. One on a fixed key is decided here: the axis stays, unconditionally, or goes."""
    names = {axis.name for axis in axes}
    settled = {bare(o.get_key_element()): o.get_value_element_as_str() for o in fixed if not o.is_delete()}
    for name in when:
        if bare(name) not in names and bare(name) not in settled:
            raise unknown("study.when", name, names)
    result = []
    for axis in axes:
        parents = {bare(parent): _values(value) for parent, value in _of(when, axis.name).items()}
        if any(p in settled and not _among(settled[p], values) for p, values in parents.items()):
            continue
        conditions = tuple(_condition(axis, p, v, axes) for p, v in parents.items() if p not in settled)
        result.append(replace(axis, when=conditions))
    return result


def _of(when: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((value for key, value in when.items() if bare(key) == name), {})
    require(isinstance(found, Mapping), f"study.when.{name}", "maps another key to the values under which", found)
    return found


def _values(value: Any) -> list[str]:
    return [text_of(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else [
        text_of(value)
    ]


def _among(text: str, values: Sequence[str]) -> bool:
    return any(same(text, value) for value in values)


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


def _ordered(axes: Sequence[Axis]) -> list[Axis]:
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
