"""torchvision's classifiers, adapted to the shape of the data."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fanin.errors import ConfigError, require, unknown
from fanin.models.activation import activation as activation_module
from fanin.models.dropout import Dropout

# What the architectures use after hidden layers. Sigmoids are left alone: theirs are gates.
REPLACEABLE = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU)
STEMS = ("small", "original")
# These two have a second output in training, and take minutes to draw weights that will be drawn again.
TWO_HEADED = {"aux_logits": False, "init_weights": False}
PARTICULARS = {"googlenet": TWO_HEADED, "inception_v3": TWO_HEADED}


def torchvision_classifier(
    *,
    in_shape: tuple[int, int, int],
    classes: int,
    name: str,
    stem: str,
    activation: str | None,
    **options: Any,
) -> nn.Module:
    """The untrained classifier `name` of torchvision.models: (N, C, H, W) -> logits (N, classes).

    `stem` is "original", or "small": a ResNet starts with a 3x3 convolution of stride 1 and no max-pooling,
    as in He et al. (2016) for 32x32 images. `activation` None leaves the architecture's own, a name replaces
    every module of it, but not what is written as a function call. `options` go to the builder.
    """
    model = build_original(name, classes=classes, options=options)
    if stem == "small":
        shrink_stem(model, name=name)
    elif stem != "original":
        raise unknown("model.stem", stem, STEMS)
    set_input_channels(model, in_shape[0])
    if activation is not None:
        set_activation(model, activation, name=name)
    replace(model, nn.Dropout, own_dropout)
    return model


def build_original(name: str, *, classes: int, options: dict[str, Any]) -> nn.Module:
    from fanin.vision import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown("model.name", name, names)
    arguments = {"weights": None, "num_classes": classes, **PARTICULARS.get(name, {}), **options}
    try:
        model = torchvision.models.get_model(name, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model: torchvision cannot build {name} with {options}: {error}") from error
    for module in model.modules():
        if hasattr(module, "inplace"):  # statistics read a layer's output after its activation has run
            module.inplace = False
    return model


def shrink_stem(model: nn.Module, *, name: str) -> None:
    first = getattr(model, "conv1", None)
    if not (isinstance(first, nn.Conv2d) and hasattr(model, "maxpool")):
        raise ConfigError(f"model.stem: must be original for {name}, which is no ResNet, got 'small'")
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


def set_input_channels(model: nn.Module, channels: int) -> None:
    """Rebuild the first convolution's weight for images of so many channels."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()


def own_dropout(dropout: nn.Dropout) -> Dropout:
    """In the place of torch's, which draws from the global stream."""
    return Dropout(dropout.p)


def set_activation(model: nn.Module, activation: str, *, name: str) -> None:
    replaced = replace(model, REPLACEABLE, lambda _: activation_module(activation))
    require(replaced, "model.activation", f"must be null for {name}: it has no activation modules", activation)


def replace(model: nn.Module, kinds: type | tuple[type, ...], make: Callable[[Any], nn.Module]) -> int:
    """Put `make(module)` in the place of every module of these `kinds`; how many there were."""
    found = [(p, m) for p, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)]
    for path, module in found:
        model.set_submodule(path, make(module))
    return len(found)
