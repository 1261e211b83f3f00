"""What a reader must know of a comparison's data to read its numbers right."""

from collections.abc import Iterator, Sequence

import pandas

from fanin.comparison.pairing import Scores
from fanin.comparison.words import name
from fanin.noise import is_seed


def remark(
    runs: pandas.DataFrame,
    scores: Scores,
    differences: pandas.DataFrame,
    *,
    within: Sequence[str],
) -> Iterator[str]:
    """A sentence each on what was averaged, counted otherwise, left out or is missing. `differences`: of the
    levels against the reference."""
    if scores.within:
        keys = ", ".join(f"{key} ({runs[key].nunique(dropna=False)} values)" for key in scores.within)
        yield f"Paired within equal values of {keys}, and averaged over them; a replicate counts once."
        if any(map(is_seed, scores.within)):
            yield "Seeds that cross make no independent repetitions: only replicates, or seeds that walk in step, do."
    for key in within:
        if key not in scores.within and runs[key].nunique(dropna=False) > 1:
            yield f"{key} changes with {scores.by}: this compares the two together."
    if diverged := int((runs["complete"] & runs["diverged"]).sum()):
        yield f"{diverged} diverged runs count as a guess would: accuracy 1/classes, loss ln(classes)."
    if left := int((~runs["complete"]).sum()):
        yield f"{left} unfinished runs are left out: killed, failed, pruned or still running."
    if absent := sorted({str(level) for level in runs[scores.by].dropna()} - set(map(str, scores.levels))):
        yield f"No finished run: {', '.join(absent)}."
    if scores.dropped:
        keys = ", ".join(scores.within)
        total = scores.dropped + len(scores.blocks)
        yield f"Left out: {scores.dropped} of {total} combinations of {keys}, which not all levels have."
    yield from _missing(scores, differences)


def _missing(scores: Scores, differences: pandas.DataFrame) -> Iterator[str]:
    if (differences["n"] == 0).any():
        shared = f"value of {', '.join(scores.within)} (as in a search)" if scores.within else "replicate"
        yield f"Pairs are missing: some levels share no {shared}."
    elif (differences["missing"] > 0).any():
        most = differences.iloc[int(differences["missing"].argmax())]
        pair = f"{name(most['level'])} and {name(most['reference'])}"
        yield f"Pairs are missing: only one of {pair} has all runs of {most['missing']} replicates."
