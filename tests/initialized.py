"""Models initialized by a choice of conf/initializer, as build.py does it but without a run."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fanin import initializers
from fanin.build import initializer
from fanin.randomness import Streams

CONF = Path(__file__).parent.parent / "conf"
NEEDED = {"mup": {"base_width": 64}}  # what a file leaves to its user


def options_of(group: str, name: str) -> dict[str, Any]:
    options = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(options, dict)
    return options


def initialize(
    model: nn.Module,
    name: str,
    *,
    images: Tensor,
    labels: Tensor,
    streams: Streams,
    scale: str = "unit",
    **changes: Any,
) -> list[initializers.Step]:
    """Initialize `model` by the file of that name with some options changed; what it measured on the way."""
    with initializer({"initializer": options_of("initializer", name) | NEEDED.get(name, {}) | changes}) as (
        function,
        options,
        bias,
    ):
        in_shape = tuple(images.shape[1:])
        if not initializers.is_whole(function):
            bound = initializers.bind(function, options)
            initializers.initialize(model, weight=bound, bias=bias, streams=streams, in_shape=in_shape)
            return []
        initializers.fill_biases(model, bias=bias, streams=streams)
        facts = {"in_shape": in_shape, "scale": scale, "count": len(labels)}
        initializers.check_whole(function, model, options=options, facts=facts)
        if next(model.parameters()).is_meta:
            return []
        given = {"images": images, "labels": labels, "index": torch.arange(len(labels))}
        return list(initializers.initialize_whole(function, model, options=options, streams=streams, **given))
