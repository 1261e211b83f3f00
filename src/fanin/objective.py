"""What a step minimises: cross-entropy plus what regularizes it, with its gradient."""

from dataclasses import dataclass
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.augmentation import Augmentation, Mixture
from fanin.data import Split
from fanin.order import batch_sizes
from fanin.precision import autocast
from fanin.regularizers import Regularizer, add_l2, decay, decays, l1_penalty, weights


class Objective:
    """What one step minimises: called by the optimizer for the loss on the batch, with its gradient in place.

    The loss is cross-entropy plus the regularizer's terms. `loss` and `predicted` keep what the first call on
    a batch found without those terms: L-BFGS calls several times a step. `augment`, an epoch's, is done to each
    batch once.
    """

    augment: Augmentation | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        split: Split,
        *,
        regularizer: Regularizer,
        precision: str,
        chunk: int | None,
    ):
        self.model, self.optimizer, self.split = model, optimizer, split
        self.regularizer, self.precision, self.chunk = regularizer, precision, chunk
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = weights(self.parameters)
        self.decays = decays(optimizer)
        self.calls = calls_closure(optimizer)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def turn_to(self, index: Tensor) -> None:
        """Take the batch at `index`; with `chunk` it passes the model in pieces whose gradients add up."""
        images, labels = self.split.images.index_select(0, index), self.split.labels.index_select(0, index)
        self.mixture: Mixture | None = None
        if self.augment:
            images, self.mixture = self.augment(images)
        others = labels[self.mixture.partners] if self.mixture else labels
        self.chunks = [(images, labels, others)]
        if self.chunk is not None:
            sizes = batch_sizes(len(index), batch_size=self.chunk)
            pieces = images.split(sizes), labels.split(sizes), others.split(sizes)
            self.chunks = list(zip(*pieces, strict=True))
        self.count = len(index)
        self.fresh = True

    def step(self) -> None:
        """One step of the optimizer, which finds the gradient in place, or asks for it."""
        if self.calls:
            self.optimizer.step(self)  # type: ignore[arg-type]  # a tensor does as a float
        else:
            self()
            self.optimizer.step()

    def __call__(self) -> Tensor:
        for parameter in self.parameters:  # what zero_grad does, at a tenth of its cost
            parameter.grad = None
        passes = [self._descend(images, labels, others) for images, labels, others in self.chunks]
        objective = _total([one.objective for one in passes])
        if self.regularizer.l1:
            penalty = l1_penalty(self.weights, strength=self.regularizer.l1)
            penalty.backward()
            objective = objective + penalty.detach()
        if self.regularizer.l2:
            objective = objective + add_l2(self.weights, strength=self.regularizer.l2)
        if self.regularizer.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.regularizer.gradient_clipping)
        if self.fresh:
            self.loss = _total([one.plain for one in passes])
            self.predicted = [one.predicted for one in passes]
            self.fresh = False
            if self.decays:
                decay(self.optimizer)
        return objective

    def _descend(self, images: Tensor, labels: Tensor, others: Tensor) -> "_Pass":
        """Add the gradient of one chunk, weighted by its share of the batch."""
        smoothing = self.regularizer.label_smoothing
        with autocast(self.precision, images.device):
            logits = self.model(images)
            loss = self._entropy(logits, labels, others, smoothing=smoothing)
        logits = logits.detach()
        plain = self._entropy(logits, labels, others, smoothing=0.0) if smoothing else loss.detach()
        if len(labels) < self.count:
            share = len(labels) / self.count
            loss, plain = loss * share, plain * share
        loss.backward()
        return _Pass(loss.detach(), plain, logits.argmax(1))

    def _entropy(self, logits: Tensor, labels: Tensor, others: Tensor, *, smoothing: float) -> Tensor:
        """Mean cross-entropy; of a mixture, that with either label by its share (Zhang et al. 2018, section 2)."""
        own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.mixture is None:
            return own
        return torch.lerp(F.cross_entropy(logits, others, label_smoothing=smoothing), own, self.mixture.share)


def calls_closure(optimizer: Optimizer) -> bool:
    """Whether its step cannot do without a closure, as that of L-BFGS. Others may ignore one, in spite of torch's
    rules."""
    closure = signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty


@dataclass(frozen=True, slots=True)
class _Pass:
    objective: Tensor
    plain: Tensor
    predicted: Tensor


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()
