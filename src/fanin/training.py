"""The training of one run, recorded epoch by epoch: what an interruption may cost of it, and what it leaves behind."""

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from fanin import data, pictures, spool
from fanin.build import Parts, initial_weights, initialize
from fanin.checkpoint import Progress, capture, restore
from fanin.diagnose import Classes, Finding, as_json, diagnose, fatal, label
from fanin.evaluation import Evaluation, evaluate
from fanin.histograms import HISTOGRAMS, collect
from fanin.spool import Spool
from fanin.stats import BATCH_NORMS, LayerStats
from fanin.train import EpochRecord, fit
from fanin.usage import Usage

# Held-out images that per-layer statistics look at: a share of the data set, as their cost is a share of an epoch's.
PROBE_SHARE, PROBE_LEAST, PROBE_MOST = 1 / 64, 64, 256


class Channel(Protocol):
    """How a run talks to whoever started it: `ask` waits for a verdict on the record, `send` does not;
    `stopped` says why the run should end with this epoch, if it should."""

    @property
    def stopped(self) -> str | None: ...
    def send(self, kind: str, payload: Any) -> None: ...
    def ask(self, kind: str, payload: Any) -> Any: ...


@dataclass
class Training:
    """One run under way: `config` and the `parts` built from it, trained on `split`, recorded in `log` and `folder`."""

    config: Mapping[str, Any]
    parts: Parts
    split: data.Split
    folder: Path
    log: Spool
    channel: Channel
    environment: Mapping[str, str]  # versions of what it is computed by
    progress: Progress = field(default_factory=Progress)

    def run(self, *, judged: bool, watched: Collection[str], checkpoint: float) -> dict[str, Any]:
        """Train, from the checkpoint on if there is one; what the spool's end record says.

        A run that is `judged` waits for a verdict after each epoch. The coordinator is told the metrics `watched`;
        `checkpoint`: seconds between two of them.
        """
        tell = self.channel.ask if judged else self.channel.send
        usage = Usage(self.split.images.device) if self.config["tracking"].get("system_metrics") == "epoch" else None
        reason, saved, last = None, time.monotonic(), None
        history = [record["metrics"] for record in spool.digest(spool.read(self.log.path)[0]).epochs]
        if resumed := resume(self.folder / "checkpoint.pt", self.parts):
            self.progress = resumed
        elif stopped := self._initialize():
            return self._end("KILLED", stopped)
        normed = has_batch_norm(self.parts.model)
        for record in self.epochs():
            new = self._record(record, usage)
            history[record.epoch :], last = [record.metrics], record
            seen = {key: record.metrics[key] for key in watched if key in record.metrics}
            if verdict := tell("record", {"epoch": record.epoch, "metrics": seen, "new": new}):
                reason = f"pruned: {verdict}"
                break
            if self.progress.ended:
                continue  # that was the last one
            if found := fatal(history, self.config["study"]["prune_on"], batch_norm=normed):
                reason = f"pruned: {found}"
                break
            stopped = self.channel.stopped
            if stopped or time.monotonic() - saved >= checkpoint:
                self._save_checkpoint()
                saved = time.monotonic()
            if stopped:
                return self._end("KILLED", stopped)
        if reason is None and self.progress.ended != "epochs":
            reason = self.progress.ended
        classes = Classes(*class_counts(self.split, last.predicted)) if last else None
        return self._conclude(reason, diagnose(history, classes=classes, batch_norm=normed))

    def epochs(self) -> Iterator[EpochRecord]:
        epochs = self.config["epochs"]
        return epochs_of(self.config, self.parts, self.split, progress=self.progress, epochs=epochs)

    def _initialize(self) -> str | None:
        """Call an initializer of whole models and record its curves. Its time counts as training. Says why the
        run should stop, if it should."""
        began, stopped = time.perf_counter(), None
        for number, step in enumerate(initialize(self.config, self.parts.model, self.split)):
            metrics = {f"pretrain/{name}": value for name, value in step.metrics.items()}
            self.log.append("pretrain", number=number, step=step.number, metrics=metrics)
            if stopped := self.channel.stopped:
                break
        self.progress.seconds = time.perf_counter() - began
        return stopped

    def _record(self, record: EpochRecord, usage: Usage | None) -> bool:
        """Write an epoch down; whether it was not there yet."""
        beside = {"histograms": record.histograms} if record.histograms else {}
        taken = usage.measure() if usage else {}
        return self.log.append("epoch", epoch=record.epoch, metrics=record.metrics | taken, **beside)

    def _save_checkpoint(self) -> None:
        self.log.sync()  # a checkpoint that is ahead of the records would leave a gap in them
        state = capture(self.parts.model, self.parts.optimizer, self.parts.schedule, self.progress)
        save(self.folder / "checkpoint.pt", state)

    def _conclude(self, reason: str | None, findings: Sequence[Finding]) -> dict[str, Any]:
        """Save the weights, show the test set to them (once), draw the pictures."""
        draft = self.folder / "artifacts.partial"
        draft.mkdir(exist_ok=True)
        self._save_weights(draft)
        self._describe(draft, findings)
        pruned = (reason or "").startswith("pruned")
        metrics = {} if pruned else self._test(draft)
        publish(draft, self.folder / "artifacts")
        end = self._end("KILLED" if pruned else "FINISHED", reason, metrics=metrics)
        return end | ({"tags": {"fanin.diagnosis": label(findings)}} if findings else {})

    def _save_weights(self, draft: Path) -> None:
        model = self.parts.model
        model.load_state_dict(self.progress.weights(model))
        save(draft / "last.pt", model.state_dict())
        save(draft / "best.pt", self.progress.best_state or model.state_dict())

    def _describe(self, draft: Path, findings: Sequence[Finding]) -> None:
        """What the run was, and what its records say of it, in files."""
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        (draft / "config.yaml").write_text(yaml.dump(dict(self.config), Dumper=dumper, sort_keys=False))
        (draft / "environment.json").write_text(json.dumps(self.environment, indent=1))
        if shapes := collect(spool.digest(spool.read(self.folder / "spool.jsonl")[0]).epochs):
            (draft / HISTOGRAMS).write_text(shapes)
        (draft / "diagnosis.json").write_text(as_json(findings))

    def _test(self, draft: Path) -> dict[str, float]:
        if self.config["test_weights"] == "best" and self.progress.best_state:
            self.parts.model.load_state_dict(self.progress.best_state)
        test = evaluate(self.parts.model, self.split.test_images, self.split.test_labels)
        draw(test, self.split, draft)
        return {"test/loss": test.loss, "test/accuracy": test.accuracy}

    def _end(self, status: str, reason: str | None, *, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What the spool's end record says."""
        return {
            "status": status,
            "reason": reason,
            "metrics": dict(metrics or {}),
            "step": max(self.progress.epoch, 0),
            "seconds": self.progress.seconds,
        }


def epochs_of(
    config: Mapping[str, Any], parts: Parts, split: data.Split, *, progress: Progress, epochs: int
) -> Iterator[EpochRecord]:
    """Train the parts as `config` says, up to epoch `epochs`."""
    if (mode := config["hardware"]["compile"]) != "none":
        parts.model.compile(mode=None if mode == "default" else mode)
    return fit(
        parts.model,
        parts.optimizer,
        split,
        epochs=epochs,
        batch_size=config["batch_size"],
        batch=config["optimizer"]["batch"],
        streams=parts.streams,
        scheduler=parts.schedule,
        regularizer=parts.regularizer,
        stats=None if config["stats"] == "off" else stats_of(config, parts, split, begun=progress.epoch >= 0),
        precision=config["hardware"]["precision"],
        progress=progress,
    )


def stats_of(config: Mapping[str, Any], parts: Parts, split: data.Split, *, begun: bool) -> LayerStats:
    """What measures the layers of a run; of one that has `begun` the initial weights are made again."""
    probe = split.val[: probe_size(len(split.images), level=config["stats"])]
    return LayerStats(
        parts.model,
        images=split.images[probe],
        labels=split.labels[probe],
        level=config["stats"],
        initial=initial_weights(config, split) if begun and config["stats"] == "full" else None,
    )


def probe_size(images: int, *, level: str) -> int:
    """Of a data set of so many `images` to train on and to validate with, however few a run takes of them: runs that
    are compared look at the same probe. 64 up to 4,096 images, 256 from 16,384 on, and under stats=full."""
    return PROBE_MOST if level == "full" else min(max(round(images * PROBE_SHARE), PROBE_LEAST), PROBE_MOST)


def save(path: Path, state: Any) -> None:
    """torch.save, then an atomic rename: a file that is there is whole."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def publish(draft: Path, folder: Path) -> None:
    """Give a finished folder its name, under which it is shipped; what a killed attempt left there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(draft, folder)


def resume(path: Path, parts: Parts) -> Progress | None:
    """Go on from the checkpoint at `path`; None if there is none."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return restore(state, parts.model, parts.optimizer, parts.schedule)


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())


def class_counts(split: data.Split, predicted: torch.Tensor) -> tuple[list[int], list[int]]:
    """Validation images of each class, and how many were taken for it; those taken for none are in no count."""
    counts = (torch.bincount(labels, minlength=split.classes) for labels in (split.labels[split.val], predicted))
    there, taken = (count.tolist() for count in counts)
    return there, taken[: split.classes]


def draw(test: Evaluation, split: data.Split, folder: Path) -> None:
    """A confusion matrix, and test images with their true and predicted labels."""
    truth, predicted = split.test_labels.cpu(), test.predicted.cpu()
    beyond = bool((predicted >= split.classes).any())  # of a model with more logits than classes: they share a column
    classes = split.classes + beyond
    matrix = pictures.confusion_matrix(truth, predicted.clamp(max=classes - 1), classes=classes)
    labels = np.arange(classes)
    head = ",".join(["true", *map(str, labels)])  # MLflow's table takes the first row for the names of columns
    rows = np.column_stack([labels, matrix])
    np.savetxt(folder / "confusion_matrix.csv", rows, fmt="%d", delimiter=",", header=head, comments="")
    samples = pictures.draw_samples(split.test_images.cpu(), truth, predicted, count=40)
    for name, picture in {"confusion_matrix.png": pictures.draw_confusion(matrix), "test_images.png": samples}.items():
        picture.save(folder / name, compress_level=1)  # a quarter larger, two thirds of the time
