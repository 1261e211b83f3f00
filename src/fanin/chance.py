"""What a run that diverged counts as, wherever runs are judged: a network that knows nothing."""

import math


def chance(metric: str, *, classes: int | None) -> float | None:
    """accuracy 1 / classes, loss ln(classes); None for another metric, and where there are no classes."""
    if classes is None:
        return None
    return {"accuracy": 1 / classes, "loss": math.log(classes)}.get(metric.rpartition("/")[2])
