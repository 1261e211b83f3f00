"""What was found wrong with the runs of a study: a line a variant, for the terminal and as Markdown."""

from collections import Counter
from collections.abc import Sequence
from textwrap import fill

import pandas

from fanin.diagnose import name_of
from fanin.leaderboard import text

WIDTH = 100
ROWS = 12
HEAD = "Diagnosis (layers and numbers of the first run that has it; diagnosis.json has all):"


def tell(runs: pandas.DataFrame, *, by: Sequence[str], width: int = WIDTH) -> tuple[str, str] | None:
    """As text and as Markdown; None if nothing is wrong with any of the `runs`, of which those with the same values
    of the columns `by` are one variant."""
    if "diagnosis" not in runs or runs["diagnosis"].isna().all():
        return None
    keys = list(by) or ["variant"]
    rows = []
    for values, group in runs.groupby(keys, observed=True, dropna=False, sort=False):
        found = group["diagnosis"].dropna()
        if len(found):
            commonest = Counter(map(name_of, found)).most_common(1)[0][0]
            example = next(one for one in found if name_of(one) == commonest)
            rows.append([" ".join(map(text, values)), f"{len(found)} of {len(group)}", example])
    more = [f"... and {len(rows) - ROWS} more variants. {_counted(runs)}"] if len(rows) > ROWS else []
    rows = rows[:ROWS]
    names = [max(len(row[i]) for row in rows) for i in (0, 1)]
    names[0] = min(names[0], width // 3)
    lines = [f"  {_cut(row[0], names[0])}  {row[1].ljust(names[1])}  {row[2]}" for row in rows]
    plain = "\n".join(
        [HEAD, *(_cut(line, width).rstrip() for line in lines), *(_wrapped(line, width) for line in more)]
    )
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    table = ["| variant | runs | diagnosis |", "| --- | --- | --- |", *(f"| {line} |" for line in cells)]
    return plain, "\n".join([HEAD, "", *table, *more])


def _counted(runs: pandas.DataFrame) -> str:
    """How many runs have which finding first."""
    counts = Counter(map(name_of, runs["diagnosis"].dropna())).most_common()
    return f"Of {len(runs)} runs: {', '.join(f'{name} {count}' for name, count in counts)}"


def _wrapped(line: str, width: int) -> str:
    return fill(line, width, initial_indent="  ", subsequent_indent="    ")


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 3] + "..."
