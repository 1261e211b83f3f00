"""A criterion as a study file writes it: which number of which runs must be what.

    - id: he_trains_50                                      one word
      says: He trains a network of 50 hidden layers         for the reader
      metric: test/accuracy            a run's number: this metric ...
      layers: max                      ... over layers, for a pattern such as activation/*/dead
      at: last                         ... at the last epoch | first | min | max | mean | an epoch's number
      reaches: "<= 1.0"                ... or: the epoch at which it first is so (between two, interpolated)
      where: {initializer: he_normal}  of the runs with these values (a list: one of them)
      runs: best                       of several in one replicate: mean | best | worst | {spread: key} | ...
      versus: {initializer: zeros}     against the runs with these values instead, replicate by replicate
      as: ratio                        difference | ratio | octaves
      over: mean                       all replicates (or 9/10 of them) satisfy the bound, or their mean does
      bound: ">= 0.8"
      profile: full                    only judged under this profile

Instead of `versus` and `over`, `against` asks for Spearman's rank correlation over variants with a predicted number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from fanin.criteria.bounds import Bound, parse_bound
from fanin.errors import ConfigError, require, unknown
from fanin.ranges import is_whole

KEYS = [
    *("id", "says", "metric", "layers", "at", "reaches", "where", "runs"),
    *("versus", "as", "over", "against", "bound", "profile"),
]
NEEDED = ("id", "says", "metric", "bound")
LAYERS = ("mean", "geometric", "median", "min", "max", "first", "last")
EPOCHS = ("last", "first", "min", "max", "mean")
RUNS = ("mean", "best", "worst", "spread", "share", "argbest")
OF_A_KEY = ("spread", "share", "argbest")
CONTRASTS = ("difference", "ratio", "octaves")
LONGEST = 8000  # characters of all criteria as JSON: what MLflow takes as a tag

Where = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Criterion:
    """One claim. `expects`: how many variants the selection and the one it is compared with have, where the
    plan says so: fewer in the records are missing."""

    id: str
    says: str
    metric: str
    layers: str | None
    at: str | int
    reaches: Bound | None
    where: Where
    runs: str
    key: str | None  # of runs: spread, share, argbest
    versus: Where | None
    contrast: str | None
    over: Fraction | None  # the share of replicates that must satisfy the bound; None: their mean must
    against: Mapping[str, Any] | None
    bound: Bound
    expects: tuple[int, int] | None = None

    @property
    def other(self) -> Where:
        """The selection that `where` is compared with."""
        return {**self.where, **(self.versus or {})}

    def expecting(self, first: int, second: int) -> "Criterion":
        return replace(self, expects=(first, second))


def parse(declared: Sequence[Any], *, profile: str | None, replicates: int) -> tuple[Criterion, ...]:
    """The criteria of a study that are judged under `profile`. Raises ConfigError for what cannot be read."""
    found: list[Criterion] = []
    for number, one in enumerate(declared):
        key = f"study.criteria[{number}]"
        require(isinstance(one, Mapping), key, "must be a mapping; see docs/studies.md", one)
        if one.get("profile") in (None, profile or "full"):
            found.append(_criterion(one, key=f"study.criteria.{one.get('id', number)}", profile=profile))
    for one in found:
        twice = [other.id for other in found].count(one.id) > 1
        require(not twice, "study.criteria", "each id is used once in a profile", one.id)
        rule = "needs study.replicates >= 2: one number has no interval; take over: all"
        require(one.over is not None or one.against or replicates > 1, f"study.criteria.{one.id}.over", rule, "mean")
    return tuple(found)


def recall(kept: Mapping[str, Any]) -> tuple[Criterion, ...]:
    """The criteria that a study's run in MLflow keeps."""
    criteria = parse(kept["criteria"], profile=kept["profile"], replicates=kept["replicates"])
    return tuple(one.expecting(*kept["expects"][one.id]) if one.id in kept["expects"] else one for one in criteria)


def _criterion(given: Mapping[str, Any], *, key: str, profile: str | None) -> Criterion:
    for name in given:
        if name not in KEYS:
            raise unknown(key, name, KEYS)
    for name in NEEDED:
        require(given.get(name) is not None, f"{key}.{name}", "is needed", None)
    metric = str(given["metric"])
    layers = _one_of(given, "layers", LAYERS, key=key)
    rule = "goes with a metric that is a pattern, with * for the layer, and such a metric needs it"
    require(any(sign in metric for sign in "*?[") == (layers is not None), f"{key}.layers", rule, layers)
    require(not ("at" in given and "reaches" in given), f"{key}.reaches", "excludes `at`", given.get("at"))
    runs, of_key = _runs(given.get("runs", "mean"), key=f"{key}.runs")
    contrast = _one_of(given, "as", CONTRASTS, key=key)
    versus = _where(given.get("versus"), key=f"{key}.versus") if "versus" in given else None
    require(versus or contrast is None, f"{key}.as", "goes with `versus`", contrast)
    for name in ("versus", "over"):
        require(not ("against" in given and name in given), f"{key}.{name}", "excludes `against`", given.get(name))
    return Criterion(
        id=str(given["id"]),
        says=str(given["says"]),
        metric=metric,
        layers=layers,
        at=_epoch(given.get("at", "last"), key=f"{key}.at"),
        reaches=parse_bound(given["reaches"], key=f"{key}.reaches") if "reaches" in given else None,
        where=_where(given.get("where", {}), key=f"{key}.where"),
        runs=runs,
        key=of_key,
        versus=versus,
        contrast=(contrast or "difference") if versus else None,
        over=_over(given.get("over", "all"), key=f"{key}.over"),
        against=_against(given.get("against"), key=f"{key}.against"),
        bound=parse_bound(_of_profile(given["bound"], profile, key=f"{key}.bound"), key=f"{key}.bound"),
    )


def _one_of(given: Mapping[str, Any], name: str, options: Sequence[str], *, key: str) -> str | None:
    value = given.get(name)
    if value is not None and value not in options:
        raise unknown(f"{key}.{name}", value, options)
    return value


def _where(given: Any, *, key: str) -> Where:
    rule = "must be a mapping such as {initializer: he_normal}"
    require(isinstance(given, Mapping), key, rule, given)
    return {str(name): tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}


def _runs(given: Any, *, key: str) -> tuple[str, str | None]:
    name, of_key = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, None)
    if name not in RUNS:
        raise unknown(key, name, RUNS)
    rule = f"{name} must name the key that is swept, as in {{{name}: initializer}}"
    require((of_key is not None) == (name in OF_A_KEY), key, rule if name in OF_A_KEY else "takes no key", given)
    return name, of_key


def _epoch(given: Any, *, key: str) -> str | int:
    if is_whole(given, least=0):
        return given
    if given not in EPOCHS:
        raise unknown(key, given, [*EPOCHS, "an epoch's number"])
    return str(given)


def _over(given: Any, *, key: str) -> Fraction | None:
    if given in ("mean", "all"):
        return None if given == "mean" else Fraction(1)
    try:
        share = Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        raise unknown(key, given, ["mean", "all", "9/10"]) from None
    require(0 < share <= 1, key, "must be a share of the replicates, such as 9/10", given)
    return share


def _against(given: Any, *, key: str) -> Mapping[str, Any] | None:
    if given is None:
        return None
    rule = "must map swept keys to `value` or to a number for each of their values"
    fits = isinstance(given, Mapping) and given and all(v == "value" or isinstance(v, Mapping) for v in given.values())
    require(fits, key, rule, given)
    return dict(given)


def _of_profile(given: Any, profile: str | None, *, key: str) -> Any:
    if not isinstance(given, Mapping):
        return given
    if (name := profile or "full") not in given:
        raise ConfigError(f"{key}: has no bound for the profile {name!r}, only for {', '.join(map(str, given))}")
    return given[name]
