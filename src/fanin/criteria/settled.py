"""The verdicts on a study's criteria, from the tracking store."""

from fnmatch import fnmatchcase
from pathlib import Path

from fanin import query
from fanin.criteria.grammar import recall
from fanin.criteria.judge import Verdict, judge
from fanin.criteria.records import from_store


def verdicts(study: str, *, project: str | Path = ".", uri: str | None = None) -> tuple[Verdict, ...]:
    """Of what is recorded so far; none for a study without criteria. Raises ConfigError for one that is not there."""
    kept = query.about(study, project=project, uri=uri).criteria
    if not kept:
        return ()
    criteria = recall(kept)
    runs = query.runs(study, project=project, uri=uri)
    known = query.metrics(study, project=project, uri=uri)
    wanted = {one.metric for one in criteria}  # of which none may be recorded yet
    keys = [key for key in known if any(fnmatchcase(key, metric) for metric in wanted)]
    curves = query.curves(study, keys, project=project, uri=uri)
    return judge(criteria, from_store(runs, curves), replicates=kept["replicates"], classes=kept["classes"])
