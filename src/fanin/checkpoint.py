"""How far a run has come, and everything needed to go on from there as if nothing had happened."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.evaluation import global_random_state, set_global_random_state
from fanin.models.noise import load_noise_state, noise_state
from fanin.randomness import Streams
from fanin.schedulers import Schedule


@dataclass
class Progress:
    """The state of `fit` between two epochs; a fresh one starts from the untrained network.

    `ended` says why training is over: "epochs", "early_stopping" or "diverged".
    """

    epoch: int = -1  # the last epoch recorded; 0 is the untrained network
    best_epoch: int = -1
    best_loss: float = float("inf")  # val/loss
    best_state: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0  # epochs since best_epoch
    seconds: float = 0.0  # wall time spent training, without evaluation
    ended: str | None = None
    random_state: dict[str, Tensor] = field(default_factory=dict)  # torch's global generators
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, if they are averaged

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Those that a finished run is judged by and saves: the average, where there is one."""
        return self.average or model.state_dict()

    def judge(self, model: nn.Module, *, epoch: int, loss: float) -> None:
        """Note the epoch's val/loss, and keep a copy of the weights if it is the best so far."""
        self.epoch = epoch
        if loss < self.best_loss:
            self.best_epoch, self.best_loss, self.stale = epoch, loss, 0
            self.best_state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        else:
            self.stale += 1

    def enter(self, streams: Streams, device: torch.device) -> None:
        """Set torch's global generators to where training left them, at first to the stream "global"."""
        if not self.random_state:
            torch.manual_seed(streams.derive("global"))  # all devices
            self.leave(device)
        set_global_random_state(self.random_state, device)

    def leave(self, device: torch.device) -> None:
        """Remember torch's global generators, which the caller of `fit` may use between two epochs."""
        self.random_state = global_random_state(device)


def capture(model: nn.Module, optimizer: Optimizer, scheduler: Schedule, progress: Progress) -> dict[str, Any]:
    """Everything `restore` needs, as plain containers and tensors, for torch.load(weights_only=True).

    The tensors are the live ones, not copies: save the dictionary before taking the next epoch.
    """
    return {
        "model": model.state_dict(),
        "noise": noise_state(model),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.scheduler.state_dict(),
        "progress": {**vars(progress)},
    }


def restore(checkpoint: dict[str, Any], model: nn.Module, optimizer: Optimizer, scheduler: Schedule) -> Progress:
    """Load a captured state into freshly built parts, in place; `fit` goes on from the Progress returned.

    Load the file with `map_location="cpu"`: random states must stay there, the rest moves to its parameter.
    """
    model.load_state_dict(checkpoint["model"])
    load_noise_state(model, checkpoint["noise"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.scheduler.load_state_dict(checkpoint["scheduler"])
    return Progress(**checkpoint["progress"])
