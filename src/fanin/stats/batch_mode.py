"""Looking at a model with its batch norms as they are in training: in eval mode their running averages hide what they
do to distributions and gradients (Yang et al. 2019)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fanin.evaluation import observing
from fanin.models.noise import load_noise_state, noise_state
from fanin.stats.kinds import BATCH_NORMS


@contextmanager
def batch_mode(model: nn.Module, images: Tensor) -> Iterator[None]:
    """While active, batch norms normalise by the batch they are given and add the noise they add in training; all
    else, dropout too, is in eval mode. `images` (N, ...): one alone has no statistics, and leaves eval mode as it is.

    Their running averages are not updated. Noise is what the next step of training will draw, the same each time:
    its streams, the global one among them, are afterwards where they were, as are all modes.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)] if len(images) > 1 else []
    tracking = [norm.track_running_stats for norm in norms]
    streams = noise_state(model)
    with observing(model, device=images.device):
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        try:
            yield
        finally:
            for norm, tracks in zip(norms, tracking, strict=True):
                norm.track_running_stats = tracks
            load_noise_state(model, streams)
