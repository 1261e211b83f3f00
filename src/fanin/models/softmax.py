"""Multinomial logistic regression: one linear layer, whose logits the loss turns into probabilities."""

from math import prod

from torch import Tensor, nn


class Softmax(nn.Module):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, *, in_shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(prod(in_shape), classes)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x.flatten(1))
