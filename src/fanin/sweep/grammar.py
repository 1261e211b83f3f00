"""From override texts to a Space: the reader of `hydra.sweeper.params` and of sweeps on the command line.

    params:
      initializer: xavier_uniform,he_normal            a list
      regularization: none,[dropout,batchnorm]         a group choice may be a list itself
      model: glob(mlp*)                                every choice of the group that matches
      optimizer.lr: tag(log,interval(1e-4,1e-1))       floats, both ends included; only a search can take it
      batch_size: int(tag(log,interval(16,512)))       integers, both ends included
      regularization.dropout: range(0,0.6,0.1)         numbers, the end excluded (Hydra's rule)
      optimizer.momentum: [0.8, 0.9]                   a YAML list is a list of choices
      epochs: 20                                       one value is fixed, not swept

`zipped` walks keys in step (lists of equal length), `points` lists explicit combinations, `when` makes an
axis exist only under some values of another:

    zipped: [[initializer, optimizer.lr]]
    points: [{optimizer: sgd, optimizer.lr: 0.1}, {optimizer: adam}]
    when: {optimizer.momentum: {optimizer: [momentum, nesterov]}}
"""

import math
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
    ValueType,
)
from hydra.errors import HydraException

from fanin.errors import ConfigError, require, unknown
from fanin.sweep.space import LIMIT, Axis, Space, bare
from fanin.sweep.structure import condition_axes, order, zip_axes

PARAMS = "hydra.sweeper.params"
QUOTES = "'\""


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
    """The space of `params` and the command line's `overrides`, which win over params of the same key.
    `loader` is needed for `glob`; `seed` orders `shuffle`. Raises ConfigError for whatever cannot be
    understood."""
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
        axes = zip_axes(axes, group)
    _refuse_double_keys(axes, fixed)
    settled = {bare(o.get_key_element()): _lower_bool(o.get_value_element_as_str()) for o in fixed if not o.is_delete()}
    axes = order(condition_axes(axes, _conditions(when or {}), settled))
    return Space(axes=tuple(axes), fixed=tuple(str(override.input_line) for override in fixed))


def check_spelling(overrides: Sequence[str]) -> None:
    """Refuse the space's keys as Hydra's own: it would take their dots for levels, and their values for a sweep of the
    sweeper itself. A quoted text for a key without dots is what it takes."""
    for line in overrides:
        key, _, value = line.lstrip("+").partition("=")
        name = key.removeprefix(f"{PARAMS}.")
        if name != key and ("." in name or value[:1] not in ("'", '"')):
            right = f"{name}={value.strip(QUOTES)}"
            raise ConfigError(f"{key}: on the command line a key of the space is written by itself: '{right}'")


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
        (override,) = parser.parse_overrides([line])
    except (HydraException, ValueError) as error:
        raise malformed(line, error) from error
    if override.is_sweep_override() and override.is_hydra_override():
        raise ConfigError(f"{override.key_or_group}: Hydra's own settings hold for all runs, cannot be swept")
    return override


def malformed(line: str, error: Exception) -> ConfigError:
    """What `line` should have been, when Hydra cannot read it as an override."""
    key, equals, value = line.partition("=")
    if not equals or not key:
        return ConfigError(f"{line}: an override is key=value, as in epochs=20")
    reason = " ".join(str(error.__cause__ or error).split("\n")[0].split())
    return ConfigError(
        f"{key}: {value!r} is not in Hydra's override grammar ({reason}): a list is [a,b], and a text with "
        f"special characters needs quotes of its own, {key}='...', inside those of the shell"
    )


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
        require(
            override.config_loader is not None,
            override.key_or_group,
            "glob() needs the config groups",
            "none",
        )
    sweep = override.value()
    # Not through Hydra's iterator where the list is plain: it would shuffle by the global random stream.
    items = sweep.list if isinstance(sweep, ChoiceSweep) else override.sweep_iterator()
    return [_lower_bool(Transformer.str(item)) for item in items]


def _lower_bool(text: str) -> str:
    """Hydra writes the values true and false as Python does; we as YAML does."""
    return text.lower() if text in ("True", "False") else text


def _interval(key: str, sweep: IntervalSweep, *, log: bool) -> Axis:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    text = f"interval({low},{high})"
    require(low < high, key, "an interval's lower end must be below its upper end", text)
    require(abs(low) != float("inf") and abs(high) != float("inf"), key, "an interval must be finite", text)
    require(not log or low > 0, key, "a logarithmic interval must lie above 0", text)
    return Axis(key, "int" if isinstance(low, int) else "interval", low=low, high=high, log=log)


def _range(key: str, sweep: RangeSweep, *, log: bool, seed: int) -> Axis:
    bounds = _bounds(sweep)
    text = "range({},{},{})".format(*bounds)
    require(bounds[2] != 0, key, "a range's step must not be 0", text)
    whole = all(isinstance(number, int) for number in bounds)
    # In decimals, as written: 0.1 + 0.2 is 0.3 here, and range(0,1,0.1) has ten values.
    start, stop, step = (Decimal(repr(number)) for number in bounds)
    count = math.ceil((stop - start) / step)
    require(count > 0, key, "a range must not be empty", text)
    rule = f"has {count:,} values, more than {LIMIT:,}; a search takes int(interval(low,high)), a grid fewer"
    require(count <= LIMIT, key, rule, text)
    numbers = [start + i * step for i in range(count)]
    rule = "a logarithmic range has whole numbers above 0 and step 1 (or use an interval)"
    require(not log or (whole and step == 1 and start > 0), key, rule, text)
    values = [str(int(number)) if whole else repr(float(number)) for number in numbers]
    if sweep.shuffle:
        random.Random(f"{seed}/{key}").shuffle(values)
    low, high = float(min(numbers)), float(max(numbers))
    return Axis(key, "range", tuple(values), low=low, high=high, step=float(abs(step)), log=log)


def _bounds(sweep: RangeSweep) -> tuple[int | float, int | float, int | float]:
    """Start, stop and step. A cast around the range has been applied by Hydra 1.3; 1.4 leaves it to us."""
    assert sweep.start is not None and sweep.stop is not None
    bounds = (sweep.start, sweep.stop, sweep.step)
    for cast in getattr(sweep, "transformers", ()):
        kind = int if cast.__name__ == "cast_int" else float
        bounds = (kind(bounds[0]), kind(bounds[1]), kind(bounds[2]))
    return bounds


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
        assignment[override.get_key_element()] = _lower_bool(override.get_value_element_as_str())
    return assignment


def _conditions(when: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    for name, parents in when.items():
        rule = "maps another key to the values under which the axis exists"
        require(isinstance(parents, Mapping) and parents, f"study.when.{name}", rule, parents)
    return {bare(name): {bare(key): _texts(v) for key, v in parents.items()} for name, parents in when.items()}


def _texts(value: Any) -> list[str]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return [text_of(item) for item in value] if several else [text_of(value)]


def _refuse_double_keys(axes: Sequence[Axis], fixed: Sequence[Override]) -> None:
    owners: dict[str, str] = {bare(override.get_key_element()): "fixed" for override in fixed}
    for axis in axes:
        for key in axis.keys:
            other = owners.get(bare(key))
            require(other is None, bare(key), "a key can be set in one place only", f"{other} and {axis.key}")
            owners[bare(key)] = axis.key
