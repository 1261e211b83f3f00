"""Reads a study cell by cell, as a notebook does: open it in an editor that knows `# %%`, or run it as a script.

    make sweep                                        # the study `initializers`, if it is not there yet
    .venv/bin/python examples/read_results.py         # or: ... read_results.py STUDY

Run it in the project folder. MLFLOW_TRACKING_URI (and FANIN_READ_URI, docs/server.md) say from where if not from here.
"""

# %% Which studies are there, and what did this one ask?
import importlib.util
import sys
from pathlib import Path

import fanin
from fanin.query import about

study = sys.argv[1] if len(sys.argv) > 1 else "initializers"
print(fanin.studies())
question = about(study)
by, metric = question.swept[0], question.metric
print(question.question, "|", by, "|", metric)

# %% Runs: one row each. Params and last metrics are columns, typed; a diverged run is there, and says so.
runs = fanin.runs(study)
print(runs.groupby(by, observed=True)[metric].agg(["mean", "std", "count"]).round(4))
print(runs[["variant", "replicate", "status", "diverged", "seconds"]].head())

# %% Curves: one row per point. Names and patterns choose metrics, `where` chooses runs: the rest is never read.
curves = fanin.curves(study, "val/*", where={"diverged": False})
band = curves.groupby([by, "metric", "step"], observed=True)["value"].agg(["mean", "min", "max"])
print(band.round(3).groupby([by, "metric"], observed=True).tail(1))

# %% Layers: one row per layer and epoch, a column per statistic. Step 0 is the untrained network.
layers = fanin.layers(study, "signal/*")
untrained = layers[layers["step"] == 0].merge(runs[["run_id", by]], on="run_id")
if not untrained.empty:
    gain = untrained.pivot_table("signal_forward_gain", by, "layer", observed=True)
    print(gain.round(3))

# %% Compare: paired by replicate, with intervals, exact tests, and a verdict in words.
comparison = fanin.compare(study, by=by, metric=metric)
print(comparison)

# %% Plot, if matplotlib is there: mean and range over replicates.
if importlib.util.find_spec("matplotlib"):
    import matplotlib

    matplotlib.use("Agg")  # a file; leave it out in a notebook
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    loss = band.xs("val/loss", level="metric")
    for level in loss.index.unique(by):
        one = loss.loc[level]
        axes.plot(one.index, one["mean"], label=str(level))
        axes.fill_between(one.index, one["min"], one["max"], alpha=0.2)
    axes.set(xlabel="epoch", ylabel="val/loss", yscale="log", title=question.question)
    axes.legend()
    target = Path("reports") / f"{study}-curves.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)
    print(target)
