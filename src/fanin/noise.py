"""Where the noise between runs comes from: initial weights, data order, dropout masks, split.

A study can vary the seed of one purpose at a time (`seeds.init`, `seeds.order`, ...; fanin.randomness). Where
these cross, their runs are no independent repetitions: all runs of one order share its luck. With sources
i = 1..k of n_i seeds each, a run is m + sum over sets u of sources of e_u, each e_u random with variance s_u^2
(a crossed random-effects model); then the mean squares of the sets have the expectations

    E[MS_u] = sum over v containing u of (N / n_v) s_v^2,     N = product of all n_i, n_v = that over i in v,

which solved for s_u^2 are the ANOVA estimates (Searle, Casella and McCulloch 1992). Intervals are generalized
confidence intervals (Weerahandi 1993): what s_u^2 would have to be, were MS_u / E[MS_u] drawn from chi^2 / df.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy
import pandas
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[numpy.float64]
Source = tuple[int, ...]  # which dimensions of a cube

PREFIX = "seeds."
TOGETHER = "only together"
ALL = "all"
DRAWS = 20_000
WIDTH = 100  # columns of a terminal
COLUMNS = ["source", "sd", "share", "low", "high"]


@dataclass(frozen=True)
class Noise:
    """`table` has a row per source: its standard deviation in units of the metric, its share of the variance, and
    the share's 95 % interval from low to high; `what` and `note` are for whoever reads it."""

    table: pandas.DataFrame
    what: str
    note: str


def is_seed(key: str) -> bool:
    return key.startswith(PREFIX)


def factors_of(keys: Iterable[str]) -> list[str]:
    """The keys that are choices rather than seeds."""
    return [key for key in keys if not is_seed(key)]


def pooled(runs: pandas.DataFrame, swept: Sequence[str]) -> tuple[pandas.DataFrame, list[str]]:
    """The runs, and the keys that tell variants apart: runs that differ by seeds only are one variant."""
    by = [key for key in factors_of(swept) if key in runs]
    alone = not by and any(is_seed(key) for key in swept)
    return (runs.assign(variant="default") if alone else runs), by


def sources_of(runs: pandas.DataFrame) -> list[str]:
    """The columns whose seeds vary."""
    columns = [str(column) for column in runs.columns if is_seed(str(column)) or column == "replicate"]
    return [column for column in columns if runs[column].nunique() > 1]


def independent(runs: pandas.DataFrame) -> bool:
    """Whether no two runs of one variant share a seed that another does not: all that vary walk in step."""
    sources = sources_of(runs)
    count = len(runs[sources].drop_duplicates()) if sources else 1
    return all(runs[source].nunique() == count for source in sources)


def repetitions(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs with their independent repetitions as `replicate`, whichever seeds make them: where seeds cross,
    the runs as they are."""
    sources = sources_of(runs)
    if sources in ([], ["replicate"]) or not independent(runs):
        return runs
    return runs.assign(replicate=runs.groupby(sources).ngroup())


def half_width(runs: pandas.DataFrame, metric: str, *, confidence: float = 0.95) -> float:
    """Half of the interval of the mean of runs whose seeds cross, t sqrt(sum of s_v^2 / n_v), with Satterthwaite's
    degrees of freedom; NaN unless every combination of their seeds is there, once."""
    squares = _mean_squares(runs, [], metric)
    if squares is None:
        return math.nan
    counts = squares.shape
    spread = numpy.array([1 / math.prod(counts[i] for i in u) for u in squares.sets])
    weights = spread @ numpy.linalg.inv(_expectations(squares))
    variance = max(float(weights @ squares.values), float(squares.values[-1]) / math.prod(counts))
    if variance == 0:
        return 0.0
    freedom = variance**2 / float(((weights * squares.values) ** 2 / squares.freedom).sum())
    return float(stdtrit(max(freedom, 1.0), (1 + confidence) / 2)) * math.sqrt(variance)


def split(runs: pandas.DataFrame, *, by: Sequence[str], metric: str) -> Noise | None:
    """What each source of noise accounts for, within equal values of the keys `by`; None unless two sources at
    least vary, each with each, once in every variant.

    `runs` has one row per run, complete ones only, with the columns `by`, replicate, seeds.* and `metric`.
    """
    squares = _mean_squares(runs, list(by), metric)
    if squares is None or not squares.values.any():
        return None
    solve = numpy.linalg.inv(_expectations(squares))
    chi = numpy.random.default_rng(0).chisquare(squares.freedom, (DRAWS, len(squares.freedom)))
    found = _grouped(solve @ squares.values, squares)
    drawn = _grouped((solve @ (squares.values * squares.freedom / chi).T), squares)
    total, totals = found.sum(), drawn.sum(axis=0)
    low, high = numpy.quantile(drawn / totals, [0.025, 0.975], axis=1)
    names = [*map(_name, squares.sources), TOGETHER]
    rows = zip(names, numpy.sqrt(found), found / total, low, high, strict=True)
    table = pandas.DataFrame([*rows, (ALL, math.sqrt(total), 1.0, math.nan, math.nan)], columns=COLUMNS)
    seeds = " x ".join(f"{n} {_name(s)}" for n, s in zip(squares.shape, squares.sources, strict=True))
    within = f", within equal {', '.join(by)}" if by else ""
    what = f"Where the noise of {metric} comes from: {len(runs)} runs, {seeds} seeds{within}"
    return Noise(table, what, _note(squares))


def _note(squares: "_Squares") -> str:
    fewest = min(squares.shape)
    rough = f"Of {fewest} seeds the spread is known roughly only. " if fewest < 10 else ""
    return f"{rough}{TOGETHER.capitalize()}: what no seed decides by itself, and what no seed fixes."


def _name(source: str) -> str:
    return source.removeprefix(PREFIX)


@dataclass(frozen=True)
class _Squares:
    """Mean squares of the sets of sources, small sets first; `shape`: seeds of each source."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    sets: tuple[Source, ...]
    values: Array
    freedom: Array


def _mean_squares(runs: pandas.DataFrame, by: list[str], metric: str) -> _Squares | None:
    """Pooled over the variants; None where fewer than two sources vary or their cubes have gaps."""
    sources = sources_of(runs)
    if len(sources) < 2:
        return None
    groups = [group for _, group in runs.groupby(by, observed=True)] if by else [runs]
    cubes = [_cube(group, sources, metric) for group in groups]
    if any(cube is None or cube.shape != _shape(runs, sources) for cube in cubes):
        return None
    shape = _shape(runs, sources)
    sets = tuple(u for size in range(1, len(sources) + 1) for u in combinations(range(len(sources)), size))
    freedom = numpy.array([math.prod(shape[i] - 1 for i in u) for u in sets], dtype=float) * len(cubes)
    sums = numpy.sum([_sums(cube, sets) for cube in cubes if cube is not None], axis=0)
    return _Squares(tuple(sources), shape, sets, sums / freedom, freedom)


def _shape(runs: pandas.DataFrame, sources: Sequence[str]) -> tuple[int, ...]:
    return tuple(runs[source].nunique() for source in sources)


def _cube(runs: pandas.DataFrame, sources: list[str], metric: str) -> Array | None:
    """The metric with a dimension per source; None unless each combination is there once."""
    if len(runs.drop_duplicates(sources)) != len(runs) or len(runs) != math.prod(_shape(runs, sources)):
        return None
    values = runs.sort_values(sources)[metric].to_numpy(dtype=float)
    return values.reshape(_shape(runs, sources)) if numpy.isfinite(values).all() else None


def _sums(cube: Array, sets: Sequence[Source]) -> Array:
    """The sum of squares of each set's effect: what its means say beyond those of the sets inside it."""
    effects: dict[Source, Array] = {(): cube.mean(keepdims=True)}
    for u in sets:
        means = cube.mean(axis=tuple(i for i in range(cube.ndim) if i not in u), keepdims=True)
        inside = [v for size in range(len(u)) for v in combinations(u, size)]
        effects[u] = means - sum(effects[v] for v in inside)
    return numpy.array([float((effects[u] ** 2).mean() * cube.size) for u in sets])


def _expectations(squares: _Squares) -> Array:
    """E[MS] = this @ s^2."""
    every = range(len(squares.shape))
    repeats = [math.prod(squares.shape[i] for i in every if i not in v) for v in squares.sets]
    rows = [
        [many if set(u) <= set(v) else 0 for v, many in zip(squares.sets, repeats, strict=True)] for u in squares.sets
    ]
    return numpy.array(rows, dtype=float)


def _grouped(components: Array, squares: _Squares) -> Array:
    """The variance of each source by itself, then that of all sets of several; negative estimates are none."""
    alone = len(squares.sources)
    together = components[alone:].sum(axis=0, keepdims=True)
    return numpy.maximum(numpy.concatenate([components[:alone], together]), 0.0)


def sentence(noise: Noise) -> str:
    """What each source accounts for, on one line."""
    columns = (noise.table[column] for column in ("source", "share", "low", "high"))
    rows = [row for row in zip(*columns, strict=True) if row[0] != ALL]
    shares = [
        f"{source} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})" for source, share, low, high in rows
    ]
    return f"Of the variance between runs with other seeds: {', '.join(shares)}."


def render(noise: Noise) -> str:
    """Plain text for the terminal."""
    cells = _cells(noise.table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    what, note = (textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in (noise.what, noise.note))
    return "\n".join([what, "", *map(str.rstrip, lines), "", note])


def render_markdown(noise: Noise) -> str:
    head, *body = _cells(noise.table)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *(["---:"] * (len(head) - 1))], *body)]
    return "\n".join([noise.what, "", *lines, "", noise.note])


def _cells(table: pandas.DataFrame) -> list[list[str]]:
    rows = [["source", "sd", "share of variance", "95 % interval"]]
    for source, sd, share, low, high in table.itertuples(index=False):
        interval = "" if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f} %"
        rows.append([source, f"{sd:.2g}", f"{100 * share:.0f} %", interval])
    return rows
