"""The one door to torchvision: `from fanin.vision import torchvision`, inside the function that needs it.

The wheel on PyPI is built against the CUDA build of torch. Beside a CPU build its native library cannot be
loaded, and importing torchvision fails, because it registers shape rules for two operators that the library
would have defined. Declaring these two schemas first cures that: data sets, transforms and classifiers need
no native operator (calling one, such as `torchvision.ops.nms`, still fails). Where the builds match, the
library loads, and nothing is declared. The import takes a second, hence "inside the function".
"""

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def has_native_operators() -> bool:
    """Load torchvision's native library as torchvision itself would, without importing torchvision."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in (Path(folder) / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES):
            if path.exists():
                try:
                    torch.ops.load_library(path)
                except OSError:  # built for another torch
                    return False
                return True
    return False


if not has_native_operators():
    declarations = torch.library.Library("torchvision", "FRAGMENT")  # they live as long as this object
    for schema in SCHEMAS:
        declarations.define(schema)

import torchvision  # noqa: E402

__all__ = ["torchvision"]
