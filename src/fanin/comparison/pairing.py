"""From runs to pairs: which values of two levels belong together, and which partners are missing.

Runs of one replicate share split, batch order and initial draws (fanin.randomness), in all points of a grid.
So two levels are paired within equal values of all other swept keys (a block) and within a replicate; and a
replicate counts once, with its mean over the blocks, since its blocks are no independent repetitions.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy
import pandas
from numpy.typing import NDArray

from fanin.errors import require

Array = NDArray[numpy.float64]


@dataclass(frozen=True)
class Scores:
    """`values` (levels, blocks, replicates) of a metric, NaN where there is no complete run; of the keys `by`
    and `within`. `dropped`: blocks left out because some level lacks them."""

    by: str
    within: tuple[str, ...]
    levels: tuple[Hashable, ...]
    blocks: pandas.DataFrame
    replicates: tuple[int, ...]
    values: Array
    dropped: int = 0

    @property
    def means(self) -> Array:
        """Of each level: over its replicates, then over its blocks."""
        return _mean(_mean(self.values))

    @property
    def per_block(self) -> pandas.DataFrame:
        """A row per combination of the keys `within`, a column per level: means over replicates."""
        index = pandas.MultiIndex.from_frame(self.blocks) if self.within else pandas.Index(["all"])
        return pandas.DataFrame(_mean(self.values).T, index, pandas.Index(self.levels, name=self.by))

    @cached_property
    def resolution(self) -> float:
        """The smallest step between two different values: of accuracies, that of one image."""
        values = numpy.unique(self.values[numpy.isfinite(self.values)])
        steps = numpy.diff(values)
        steps = steps[steps > 1e-9 * numpy.abs(values).max()]
        return float(steps.min()) if steps.size else 0.0

    def of_level(self, level: int) -> Array:
        """The means over blocks of the replicates that have all blocks the level was seen in."""
        values = self.values[level]
        return over_blocks(_whole(values, numpy.isfinite(values)))


@dataclass(frozen=True)
class Pairs:
    """Of two levels: `first` and `second` (blocks, replicates), where both are complete, and the number of
    replicates that only one of them has."""

    first: Array
    second: Array
    missing: int

    @property
    def differences(self) -> Array:
        """One per replicate: first - second, the mean over blocks."""
        return over_blocks(self.first - self.second)

    @property
    def correlation(self) -> float:
        """rho in Var(first - second) = (Var first + Var second) (1 - rho): what pairing was good for."""
        if self.differences.size < 2:
            return numpy.nan
        spreads = numpy.cov(over_blocks(self.first), over_blocks(self.second))
        total = spreads[0, 0] + spreads[1, 1]
        return float(2 * spreads[0, 1] / total) if total > 0 else numpy.nan


def arrange(runs: pandas.DataFrame, *, by: str, within: Sequence[str], metric: str) -> Scores:
    """The complete runs (a bool column `complete`) by level, block and replicate; equal ones are averaged.

    Blocks that some level lacks are left out, unless no block is common to all: a mean over other blocks
    would be of something else. Raises ConfigError if `by` has fewer than two levels.
    """
    runs = runs[runs["complete"] & runs[metric].notna() & runs[by].notna()]
    levels = list(runs[by].unique())
    require(len(levels) > 1, by, "a comparison needs two levels with a finished run", levels)
    keys = _blocking(runs, by, within)
    block = runs.groupby(keys, observed=True, dropna=False).ngroup() if keys else pandas.Series(0, runs.index)
    replicates = sorted(runs["replicate"].unique())
    level = pandas.Index(levels).get_indexer(runs[by].astype(object))
    places = (level, block.to_numpy(), numpy.searchsorted(replicates, runs["replicate"].to_numpy()))
    shape = len(levels), block.max() + 1, len(replicates)
    sums, counts = numpy.zeros(shape), numpy.zeros(shape)
    numpy.add.at(sums, places, runs[metric].to_numpy(dtype=float))
    numpy.add.at(counts, places, 1)
    with numpy.errstate(invalid="ignore"):
        values = sums / counts
    blocks = runs[keys].assign(block=block).drop_duplicates("block").set_index("block").sort_index()
    common = numpy.logical_and.reduce(numpy.isfinite(values).any(axis=2))
    kept = common if common.any() else ~common
    return Scores(
        by,
        tuple(keys),
        tuple(levels),
        blocks[kept],
        tuple(int(replicate) for replicate in replicates),
        values[:, kept],
        dropped=int((~kept).sum()),
    )


def pair(scores: Scores, first: int, second: int) -> Pairs:
    """The values of two levels in the blocks both were seen in, of the replicates that have all of these."""
    one, other = scores.values[first], scores.values[second]
    both = numpy.isfinite(one) & numpy.isfinite(other)
    either = numpy.isfinite(one) | numpy.isfinite(other)
    left, right = _whole(one, both), _whole(other, both)
    return Pairs(left, right, int(either.any(axis=0).sum()) - left.shape[1])


def in_common(scores: Scores) -> Array:
    """(replicates, levels): means over the blocks that all levels have, of the replicates complete in
    them."""
    everywhere = numpy.logical_and.reduce(numpy.isfinite(scores.values))
    return numpy.stack([over_blocks(_whole(values, everywhere)) for values in scores.values], axis=1)


def over_blocks(values: Array) -> Array:
    """The mean of each replicate; of (blocks, replicates)."""
    return values.sum(axis=0) / max(1, len(values))


def _blocking(runs: pandas.DataFrame, by: str, within: Sequence[str]) -> list[str]:
    """The keys that vary, without those that walk in step with `by`: they could not be told from it."""
    varying = [key for key in within if key != by and runs[key].nunique(dropna=False) > 1]
    per_level = runs.groupby(by, observed=True)
    return [key for key in varying if (per_level[key].nunique(dropna=False) > 1).any()]


def _whole(values: Array, present: NDArray[numpy.bool_]) -> Array:
    """The part of `values` (blocks, replicates) without empty blocks, and then without replicates with
    gaps."""
    blocks = present.any(axis=1)
    replicates = present[blocks].all(axis=0) & blocks.any()
    return values[blocks][:, replicates]


def _mean(values: Array) -> Array:
    """Over the last axis, of what is there; NaN where nothing is."""
    present = numpy.isfinite(values)
    with numpy.errstate(invalid="ignore"):
        return numpy.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1)
