"""Following tensors through a model: which layer's output a module is given, and through which modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Mark = tuple[int, int]


@dataclass(frozen=True)
class Passed:
    """The output of the layer at `path` after it has passed `modules`."""

    path: str
    modules: tuple[nn.Module, ...] = ()


# Called with the module, its input, its output, and what its input is (None: the images, a sum, ...).
Reader = Callable[[nn.Module, Tensor, Tensor, Passed | None], None]


@contextmanager
def following(model: nn.Module, layers: Mapping[str, nn.Module], read: Reader) -> Iterator[None]:
    """While active, `read` hears of every call of a layer, and of the modules without children after it.

    A tensor is known by its memory and its version, so that a view of it (flatten) is the same, while what was
    written into in between, by an addition in place, is not.
    """
    paths = {module: path for path, module in layers.items()}
    trail: dict[Mark, tuple[Passed, Tensor]] = {}  # with the tensor: while it lives, no other has its memory
    given: dict[nn.Module, Mark] = {}

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            given[module] = _mark(inputs[0])

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        mark = given.pop(module, None)
        if mark is None or not isinstance(output, Tensor):
            return
        source = trail[mark][0] if mark in trail else None
        if module in paths:
            read(module, inputs[0], output, source)
            trail[_mark(output)] = Passed(paths[module]), output
        elif source:
            read(module, inputs[0], output, source)
            trail[_mark(output)] = Passed(source.path, (*source.modules, module)), output

    heard = [module for module in model.modules() if module in paths or not any(module.children())]
    handles = [module.register_forward_pre_hook(enter) for module in heard]
    handles += [module.register_forward_hook(leave) for module in heard]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        trail.clear()  # a tensor's own hooks may hold a reader: no garbage collector sees such a circle


def _mark(tensor: Tensor) -> Mark:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
