"""From a run's statistics to findings: what is wrong with it, in which layer, and the number that shows it.

symmetric_units     A hidden layer's row_spread is at most 1e-3 at the last epoch: its units are copies of one.
                    Exact symmetry gives 0 (float32 left 3e-7 in pilot runs), random weights gave at least 0.6.
step_too_large      The loss of an epoch of training is above the untrained network's while a layer's norm more than
                    doubled; or it is not finite, after a start that was not in ruins. Steps below 2 / sharpness lower
                    the loss (Cohen et al. 2021); in healthy runs norms grew up to 1.9-fold, and the loss fell.
exploding_signal    At the last epoch, E[z^2] of the logits is above 1e4 E[x^2], or the squared gradient of the first
                    layer above 1e6 times that of the logits. Healthy runs ended below 450 and 60; N(0, 1) weights on
                    784-256-256-10 above 1e6.
vanishing_gradient  Before training, the squared gradient of the first layer is below 1e-6 times that of the logits: so
                    it is where sigmoid networks get stuck, with 5 hidden layers (Glorot and Bengio 2010). Networks
                    that trained well started above 7e-4. A last layer of zeros (zero_last, fixup), or of ones at
                    black pixels (partial_identity), lets nothing through before its first step: then the first
                    epoch after it is judged.
saturated_units     At the last epoch, more than 75 % of a layer's outputs lie in the outer 5 % of the activation's
                    range (Glorot and Bengio 2010). Healthy runs had up to 25 %.
dead_units          At the last epoch, more than 75 % of a layer's rectifiers are 0 on the whole probe (Lu et al. 2020).
                    Healthy runs had up to 55 %, in a narrow layer.
dead_class          A class is never predicted, of which there are 10 or more validation images. Guessing by the class
                    frequencies of 10 classes among 500 images would miss one with probability 1e-22.

Pilot runs: LOG.md, 2026-11-28. With batch norm the last epoch is judged for vanishing gradients, too: at epoch 0, the
averages that evaluation uses know nothing of the data yet.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from fanin.errors import require

Metrics = Mapping[str, float]

SYMMETRIC, EXPLODED, STEEP, GROWN = 1e-3, 1e4, 1e6, 2.0
VANISHED, SATURATED, DEAD, SEEN = 1e-6, 0.75, 0.75, 10
NAMES = (
    *("symmetric_units", "step_too_large", "exploding_signal", "vanishing_gradient"),
    *("saturated_units", "dead_units", "dead_class"),
)  # the likelier cause first: a network that exploded has saturated units, too
WHILE_TRAINING = NAMES[:-1]  # those that can be told before the end
SHORT = 2  # findings a tag names


@dataclass(frozen=True)
class Finding:
    """`value` shows it: a share, a ratio, a number of classes; `text` says it in words."""

    name: str
    layer: str
    value: float
    text: str

    @property
    def short(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class Classes:
    """Images of each class in the validation set, and how often each was predicted."""

    images: Sequence[int]
    predicted: Sequence[int]


def diagnose(
    epochs: Sequence[Metrics], *, classes: Classes | None = None, batch_norm: bool = False, since: int = 1
) -> list[Finding]:
    """Findings in the order of NAMES, at most one of each; `epochs`: the metrics recorded, from epoch 0 on. Steps that
    are too large are looked for from epoch `since` on."""
    if not epochs:
        return []
    last = _last_finite(epochs)
    start = last if batch_norm else epochs[0]
    found = [
        _symmetric(last),
        _overstepping(epochs, start, since=since),
        _exploding(start, last, diverged=_diverged(epochs)),
        _vanishing(start if batch_norm else _opened(epochs)) if len(epochs) > 1 or not batch_norm else None,
        _most(last, "saturated", at_least=SATURATED, name="saturated_units"),
        _most(last, "dead", at_least=DEAD, name="dead_units"),
        _dead_class(classes) if classes and not _diverged(epochs) else None,
    ]
    return [finding for finding in found if finding]


def fatal(epochs: Sequence[Metrics], names: Collection[str], *, batch_norm: bool = False) -> str | None:
    """The first finding among `names`, in short: a reason to end the run. To be asked after every epoch: of the steps
    it looks at the last one, for those before it were looked at then."""
    found = diagnose(epochs, batch_norm=batch_norm, since=max(1, len(epochs) - 1)) if names else []
    return next((finding.short for finding in found if finding.name in names), None)


def check_measured(names: Collection[str], *, stats: str) -> None:
    """Refuse to prune on what is not measured."""
    require(not names or stats != "off", "study.prune_on", "needs statistics (stats=standard)", list(names))


def label(findings: Sequence[Finding]) -> str:
    """For a tag: the likeliest causes first, the rest counted."""
    more = [f"+{len(findings) - SHORT} more"] if len(findings) > SHORT else []
    return "; ".join([*(finding.short for finding in findings[:SHORT]), *more])


def name_of(text: str) -> str:
    """The name of the first finding in a label."""
    return text.partition(":")[0]


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def _symmetric(last: Metrics) -> Finding | None:
    spreads = _by_layer(last, "weight", "row_spread")
    hidden = {layer: spreads[layer] for layer in _by_layer(last, "activation", "mean") if layer in spreads}
    layer = min(hidden, key=lambda layer: hidden[layer], default="")
    if not layer or not hidden[layer] <= SYMMETRIC:
        return None
    count = sum(spread <= SYMMETRIC for spread in hidden.values())
    return Finding("symmetric_units", layer, hidden[layer], f"{layer} spread {hidden[layer]:.1g}" + _others(count))


def _exploding(start: Metrics, last: Metrics, *, diverged: bool) -> Finding | None:
    for epoch in (last, start) if diverged else (last,):
        forward, backward = _gains(epoch, "forward_gain"), _gains(epoch, "backward_gain")
        if _product(forward) > EXPLODED:
            layer = max(forward, key=lambda layer: forward[layer])
            total = _product(forward) ** 0.5
            return Finding("exploding_signal", layer, total, f"{layer} signal x {total:.2g} from input to logits")
        if _product(backward) > STEEP:
            layer, total = next(iter(backward)), _product(backward) ** 0.5
            return Finding("exploding_signal", layer, total, f"{layer} gradient x {total:.2g} from logits to input")
    return None


def _overstepping(epochs: Sequence[Metrics], start: Metrics, *, since: int) -> Finding | None:
    if _product(_gains(start, "forward_gain")) > EXPLODED:
        return None  # it began in ruins
    untrained = epochs[0].get("val/loss", math.nan)
    for number in range(since, len(epochs)):
        before, after = epochs[number - 1 : number + 1]
        if after.get("diverged"):
            return Finding("step_too_large", "", math.inf, f"diverged in epoch {number}")
        norms = _by_layer(before, "weight", "norm"), _by_layer(after, "weight", "norm")
        growth = {layer: norms[1][layer] / norm for layer, norm in norms[0].items() if norm > 0 and layer in norms[1]}
        layer = max(growth, key=lambda layer: growth[layer], default="")
        if layer and growth[layer] > GROWN and after.get("train/loss", 0.0) > untrained:
            text = f"{layer} norm x {growth[layer]:.2g} in epoch {number}"
            return Finding("step_too_large", layer, growth[layer], text)
    return None


def _opened(epochs: Sequence[Metrics]) -> Metrics:
    """The first epoch whose last layer is not shut, as it may be at its start; no metrics if none is."""
    return next((epoch for epoch in epochs if not _shut(epoch)), {})


def _shut(metrics: Metrics) -> bool:
    """Whether the last layer lets nothing back, but gets a gradient itself, so that its first step opens it; not in
    a network of zeros."""
    path, backward = [*_gains(metrics, "forward_gain")], [*_gains(metrics, "backward_gain").values()]
    if backward[-1:] != [0] or not metrics.get(f"weight/{path[0]}/norm"):
        return False
    return metrics.get(f"grad/{path[-1]}/norm", 0.0) > 0


def _vanishing(start: Metrics) -> Finding | None:
    gains = _gains(start, "backward_gain")
    total = _product(gains)
    if not gains or not total < VANISHED:
        return None
    layer = next(iter(gains))
    return Finding("vanishing_gradient", layer, total**0.5, f"{layer} gets {total**0.5:.1g} of the gradient")


def _most(last: Metrics, statistic: str, *, at_least: float, name: str) -> Finding | None:
    shares = _by_layer(last, "activation", statistic)
    layer = max(shares, key=lambda layer: shares[layer], default="")
    if not layer or not shares[layer] > at_least:
        return None
    count = sum(share > at_least for share in shares.values())
    return Finding(name, layer, shares[layer], f"{layer} {shares[layer]:.0%}".replace("%", " %") + _others(count))


def _dead_class(classes: Classes) -> Finding | None:
    pairs = enumerate(zip(classes.images, classes.predicted, strict=True))
    dead = [number for number, (images, predicted) in pairs if images >= SEEN and not predicted]
    if not dead:
        return None
    which = f"class {dead[0]}" if len(dead) == 1 else f"{len(dead)} of {len(classes.images)} classes"
    return Finding("dead_class", "", float(len(dead)), f"{which} never predicted")


def _others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _diverged(epochs: Sequence[Metrics]) -> bool:
    return bool(epochs[-1].get("diverged"))


def _last_finite(epochs: Sequence[Metrics]) -> Metrics:
    """The last epoch whose weights are numbers; the first if there is none."""
    finite = (e for e in reversed(epochs) if all(map(math.isfinite, _by_layer(e, "weight", "norm").values())))
    return next(finite, epochs[0])


def _gains(metrics: Metrics, name: str) -> dict[str, float]:
    return _by_layer(metrics, "signal", name)


def _product(gains: Mapping[str, float]) -> float:
    return math.prod(gains.values())


def _by_layer(metrics: Metrics, kind: str, name: str) -> dict[str, float]:
    """Layer -> value of a statistic `kind/<layer>/name`, in the order of the layers."""
    return {
        key[len(kind) + 1 : -len(name) - 1]: value
        for key, value in metrics.items()
        if key.startswith(f"{kind}/") and key.endswith(f"/{name}")
    }
