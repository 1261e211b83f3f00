"""A study's criteria in a sweep: checked against the plan before the first run, judged after the last."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fanin.criteria.grammar import LONGEST, Criterion, Where
from fanin.criteria.values import same
from fanin.description import flatten
from fanin.errors import ConfigError, require, unknown
from fanin.sweep.folder import StudyFolder
from fanin.sweep.plan import Planned
from fanin.sweep.study import LAYERED, PLAIN, Study, Variant

if TYPE_CHECKING:
    from fanin.criteria.judge import Verdict  # with pandas

OTHERS = ("optimizer/lr", "diverged")  # recorded, too, though nobody is judged by them


def expect(study: Study, variants: Sequence[Variant]) -> Study:
    """The study with criteria that know how many of the planned variants they are about. Raises ConfigError for
    a metric, param or value that none of them has."""
    params = [flatten(one.composition.config, one.composition.choices) for one in variants]
    grid = study.sampler["name"] == "grid"
    return replace(study, criteria=tuple(_expect(one, params, grid=grid) for one in study.criteria))


def _expect(criterion: Criterion, params: Sequence[Mapping[str, str]], *, grid: bool) -> Criterion:
    key = f"study.criteria.{criterion.id}"
    check_metric(criterion.metric, key=f"{key}.metric")
    named = [name for name in (criterion.key, *(criterion.against or {})) if name]
    for name in named:
        _known(name, params, key=key)
    first = _matching(criterion.where, params, key=f"{key}.where", grid=grid)
    second = _matching(criterion.other, params, key=f"{key}.versus", grid=grid) if criterion.versus else 0
    return criterion.expecting(first, second) if grid else criterion


def check_metric(metric: str, *, key: str) -> None:
    """What can be told without the model: a worker, which has it, knows the layers."""
    known = [*PLAIN, *OTHERS]
    if metric.partition("/")[0] not in LAYERED and not any(fnmatchcase(name, metric) for name in known):
        raise unknown(key, metric, known)


def _known(name: str, params: Sequence[Mapping[str, str]], *, key: str) -> None:
    if not any(name in one for one in params):
        raise unknown(key, name, {name for one in params for name in one})


def _matching(where: Where, params: Sequence[Mapping[str, str]], *, key: str, grid: bool) -> int:
    """How many variants have the values. Raises ConfigError where none has, saying which value is the trouble."""
    for name, values in where.items():
        _known(name, params, key=key)
        offered = {one[name] for one in params if name in one}
        for value in values:
            if grid and not any(same(text, value) for text in offered):
                raise unknown(f"{key}.{name}", value, offered)
    found = sum(matches(where, one) for one in params)
    require(found or not grid, key, "no variant of the study has this", {k: list(v) for k, v in where.items()})
    return found


def matches(where: Where, params: Mapping[str, str]) -> bool:
    return all(any(same(params.get(key), value) for value in values) for key, values in where.items())


def metrics_of(study: Study, variant: Variant) -> dict[str, str]:
    """Config key -> metric of the criteria that are about the variant."""
    params = flatten(variant.composition.config, variant.composition.choices)
    about = (one for one in study.criteria if matches(one.where, params) or matches(one.other, params))
    return {f"study.criteria.{one.id}.metric": one.metric for one in about}


def as_tag(study: Study) -> str | None:
    """The criteria as the study's run in MLflow keeps them. Raises ConfigError for more than it can."""
    if not study.criteria:
        return None
    kept = {
        "profile": study.profile,
        "replicates": study.replicates,
        "classes": study.classes,
        "criteria": _declared(study),
        "expects": {one.id: one.expects for one in study.criteria if one.expects},
    }
    text = json.dumps(kept, separators=(",", ":"))
    if len(text) > LONGEST:
        raise ConfigError(f"study.criteria: {len(text)} characters, MLflow takes {LONGEST}: shorten the words")
    return text


def _declared(study: Study) -> list[Any]:
    ids = {one.id for one in study.criteria}
    wanted = (study.profile or "full", None)
    return [c for c in study.base.config["study"]["criteria"] if c["id"] in ids and c.get("profile") in wanted]


def settle(study: Study, folder: StudyFolder, planned: Sequence[Planned]) -> tuple["Verdict", ...]:
    """The verdicts on the criteria, from the spools."""
    if not study.criteria:
        return ()
    from fanin.criteria.judge import judge  # with pandas
    from fanin.criteria.records import from_spools

    folders = [folder.run(f"{one.variant.key}-r{one.replicate}") for one in planned]
    records = from_spools(folders, {one.metric for one in study.criteria})
    return judge(study.criteria, records, replicates=study.replicates, classes=study.classes)
