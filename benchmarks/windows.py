"""What TPE finds on an excerpt of its history (sampler.window) against all of it: regrets of the best so far.

The search alone, no runs, on three functions: Branin's in two dimensions with a choice that costs 0, 5 or 10;
Hartmann's in six; and one like a training's error, with noise in it: the learning rate on a log scale, dropout,
momentum, a width and two choices of names. The regret is that of the point which looks best, without noise. A seed
gives all windows the same draws until the history is longer than the excerpt.

    python benchmarks/windows.py [--windows 0,100,200] [--seeds 10] [--trials 500] [--functions branin,noisy]

The window 0 is all of the history, and what the others are compared with.
"""

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench_search import PENALTIES

from fanin.sweep.grammar import parse
from fanin.sweep.search import Search

HARTMANN = (
    (1.0, (10, 3, 17, 3.5, 1.7, 8), (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886)),
    (1.2, (0.05, 10, 17, 0.1, 8, 14), (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991)),
    (3.0, (3, 3.5, 1.7, 10, 17, 8), (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650)),
    (3.2, (17, 8, 0.05, 10, 0.1, 14), (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381)),
)
INITIALIZERS = {"he_normal": 0.0, "orthogonal": 0.0, "xavier_normal": 0.01, "normal": 0.04, "zeros": 0.5}
OPTIMIZERS = {"adamw": (-3.0, 0.0), "sgd": (-0.5, 0.01), "momentum": (-1.5, 0.0), "rmsprop": (-3.0, 0.02)}
SPACES = {
    "branin": {"x": "interval(-5,10)", "y": "interval(0,15)", "c": ",".join(PENALTIES)},
    "hartmann": {f"x{i}": "interval(0,1)" for i in range(6)},
    "noisy": {
        "lr": "tag(log,interval(1e-5,10))",
        "dropout": "interval(0,0.8)",
        "momentum": "interval(0,0.99)",
        "width": "range(16,272,16)",
        "optimizer": ",".join(OPTIMIZERS),
        "initializer": ",".join(INITIALIZERS),
    },
}
NOISE = 0.01  # standard deviation of the error of a training, between seeds


def branin(point: Mapping[str, str]) -> float:
    x, y = float(point["x"]), float(point["y"])
    base = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return base + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 + PENALTIES[point["c"]] - 0.397887


def hartmann(point: Mapping[str, str]) -> float:
    xs = [float(point[f"x{i}"]) for i in range(6)]
    return 3.32237 - sum(
        weight * math.exp(-sum(a * (x - p) ** 2 for a, x, p in zip(scale, xs, place, strict=True)))
        for weight, scale, place in HARTMANN
    )


def noisy(point: Mapping[str, str]) -> float:
    """An error above the least there is: a bowl around each optimizer's learning rate, narrower with momentum."""
    place, cost = OPTIMIZERS[point["optimizer"]]
    momentum = float(point["momentum"])
    rate = math.log10(float(point["lr"])) - (place - 1.5 * momentum)
    bowl = min(0.9, 0.05 * rate**2 * (1 + momentum) + 0.3 * (float(point["dropout"]) - 0.25) ** 2)
    narrow = 0.1 * (math.log2(int(point["width"]) / 128)) ** 2 / 9
    return bowl + narrow + cost + INITIALIZERS[point["initializer"]] + 0.05 * (momentum - 0.8) ** 2


FUNCTIONS = {"branin": (branin, 0.0), "hartmann": (hartmann, 0.0), "noisy": (noisy, NOISE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", default="0,100,200", help="with 0 among them")
    parser.add_argument("--seeds", default="10", help="how many, or FIRST:END")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--functions", default=",".join(FUNCTIONS))
    options = parser.parse_args()
    windows = [int(window) for window in options.windows.split(",")]
    if 0 not in windows:
        parser.error("--windows: 0 must be among them, all of the history, which the others are compared with")
    first, _, end = options.seeds.rpartition(":")
    seeds = range(int(first or 0), int(end))
    for name in options.functions.split(","):
        found = {window: [regret(name, window, seed, options.trials) for seed in seeds] for window in windows}
        for window, regrets in found.items():
            compare(name, window, regrets, found[0])


def compare(name: str, window: int, regrets: list[float], whole: list[float]) -> None:
    low, median, high = statistics.quantiles(regrets, n=4)
    print(f"{name}, window {window or 'of all'}: median regret {median:.3g} (quartiles {low:.3g}, {high:.3g})", end="")
    less, more = (sum(sign * (a - b) > 0 for a, b in zip(whole, regrets, strict=True)) for sign in (1, -1))
    ratio = median / statistics.median(whole)
    print(f", {ratio:.2f}x; less in {less}, more in {more} of {len(regrets)} seeds", flush=True)


def regret(name: str, window: int, seed: int, trials: int) -> float:
    function, noise = FUNCTIONS[name]
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        search = Search(
            parse(SPACES[name]),
            sampler={"name": "tpe", "window": window or None},
            directions=["minimize"],
            storage=Path(folder) / "journal.log",
            name=name,
            seed=seed,
        )
        for _ in range(trials):
            trial = search.ask()
            assert trial is not None
            search.tell(trial.number, function(trial.values) + noise * draw.gauss(0, 1))
        assert search.best is not None
        return function(search.best.values)


if __name__ == "__main__":
    main()
