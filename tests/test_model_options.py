"""Models built for the data at hand: a user's own, drafts, torchvision's, and options that make no network."""

from pkgutil import resolve_name

import pytest
import torch
from architectures import MNIST, MODELS, build, build_own, images
from initialized import options_of
from torch import Tensor, nn

from fanin import models, vision
from fanin.errors import ConfigError
from fanin.models.dropout import Dropout


class Plain(nn.Module):
    """What a user may bring: it names what it needs and knows nothing of norms or dropout."""

    def __init__(self, classes: int, width: int, depth: int = 1):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoHeaded(nn.Linear):
    def __init__(self):
        super().__init__(28, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def test_a_users_class_is_given_what_its_signature_names():
    assert build_own(Plain, width=7)(images()).shape == (8, 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=7, norm="batch"), r"regularization.norm: .*\.Plain has no place for norm 'batch'"),
        (dict(width=7, dropout=0.5), r"regularization.dropout: .*\.Plain has no place for dropout 0.5"),
        (dict(widht=7), "model: 'widht' is not one of: depth, width; did you mean 'width'"),
        ({}, r"model.width: missing, and .*\.Plain has no default for it"),
        (dict(width=7, norm="bacth"), "regularization.norm: 'bacth' .* did you mean 'batch'"),
        (dict(width=7, dropout=1.0), r"regularization.dropout: must be a number in \[0, 1\), got 1.0"),
        (dict(width=7, dropout="much"), r"regularization.dropout: must be a number in \[0, 1\), got 'much'"),
    ],
)
def test_what_a_users_class_cannot_take_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_own(Plain, **changes)


@pytest.mark.parametrize("name", ["softmax", "resnet18", "torchvision", "mlp_miswired"])
@pytest.mark.parametrize("change", [{"norm": "batch"}, {"dropout": 0.5}, {"stochastic_depth": 0.2}])
def test_norm_or_dropout_is_refused_where_it_would_do_nothing(name, change):
    [key] = change
    with pytest.raises(ConfigError, match=f"regularization.{key}: .* has no place for {key}"):
        build(name, **change)


@pytest.mark.parametrize("make", [models.build, models.draft])
@pytest.mark.parametrize(
    "factory, message",
    [
        (
            lambda: nn.Linear(784, 10),
            "model: does not fit the data: on images of 1x28x28 torch says: mat1 and mat2",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 12)),
            r"images of 1x28x28 must give logits of shape \(2, 10\), got \(2, 12\)",
        ),
        (lambda: "no model", "model._target_: must make a torch.nn.Module, got 'str'"),
        (TwoHeaded, "model: must return one tensor of logits, got tuple"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(make, factory, message):
    with pytest.raises(ConfigError, match=message):
        build_own(factory, make=make)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "mlp",
            dict(widths=[]),
            r"model.widths: must name a hidden layer \(without any, it is model=softmax\)",
        ),
        (
            "mlp",
            dict(widths=[256, 0]),
            r"model.widths: must be a list of positive integers.*, got \[256, 0\]",
        ),
        ("mlp", dict(widths=256), "model.widths: must be a list of positive integers.*, got 256"),
        ("mlp", dict(widths="256"), "model.widths: must be a list of positive integers.*, got '256'"),
        ("cnn", dict(hidden=[1.5]), "model.hidden: must be a list of positive integers"),
        ("cnn", dict(stages=[]), "model.stages: must be a list of lists"),
        ("cnn", dict(stages=[[]]), "model.stages: must hold at least one convolution a stage"),
        ("cnn", dict(stages=[16]), "model.stages: must be a list of positive integers"),
        ("cnn", dict(head="softmax"), "model.head: 'softmax' is not one of: linear, relu"),
        ("cnn", dict(kernel=0), "model.kernel: must be a positive integer, got 0"),
        ("cnn", dict(padding=3), "model.padding: must be in 0..kernel - 1, got 3"),
        (
            "cnn_small",
            dict(shape=(1, 8, 8)),
            "model: does not fit the data: 5x5 convolutions .* images of 8x8",
        ),
        ("cnn", dict(shape=(1, 3, 3)), "model: does not fit the data: 3x3 convolutions .* images of 3x3"),
        ("resnet18", dict(name="resnet81"), "model.name: 'resnet81' .* did you mean 'resnet18'"),
        (
            "resnet18",
            dict(name="vgg11", stem="small"),
            "model.stem: must be original for vgg11, which is no ResNet",
        ),
        ("resnet18", dict(stem="tiny"), "model.stem: 'tiny' is not one of: original, small"),
        ("resnet18", dict(dropuot=0.5), "model: torchvision cannot build resnet18 .*dropuot"),
        (
            "torchvision",
            dict(name="alexnet"),
            "model: does not fit the data: on images of 1x28x28 torch says: ",
        ),
        ("torchvision", dict(name="vit_b_16", image_size=28), "model: torchvision cannot build vit_b_16"),
        (
            "torchvision",
            dict(name="googlenet", activation="tanh"),
            "model.activation: must be null for googlenet",
        ),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(name, changes, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_the_smallest_images_that_cnn_small_takes_are_16_pixels_wide():
    # (((16 - 4) / 2) - 4) / 2 = 1
    assert build("cnn_small", shape=(1, 16, 16)).layers[2].in_features == 20
    with pytest.raises(ConfigError, match="leave nothing of images of 15x16"):
        build("cnn_small", shape=(1, 15, 16))


def test_checking_the_fit_leaves_no_trace():
    torch.manual_seed(0)
    expected = models.Mlp(in_shape=MNIST, classes=10, widths=[8], activation="relu", norm="batch", dropout=0.5)
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = build("mlp", widths=[8], norm="batch", dropout=0.5)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert model.training
    for found, state in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, state)


# Drafts: checking a plan without building it.


@pytest.mark.parametrize("name", MODELS)
def test_a_draft_holds_no_numbers_and_moves_no_random_stream(name):
    options = options_of("model", name)
    before = torch.random.get_rng_state()
    model = build_own(resolve_name(options.pop("_target_")), make=models.draft, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_class_that_needs_numbers_is_drafted_for_real():
    def factory(classes: int) -> nn.Module:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

    before = torch.random.get_rng_state()
    assert build_own(factory, make=models.draft)(images()).shape == (8, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_second_output_is_refused_by_a_draft_though_it_exists_in_training_only(name):
    options = dict(name=name, stem="original", activation=None, aux_logits=True)
    arguments = dict(in_shape=(3, 299, 299), classes=10, norm="none", dropout=0.0, options=options)
    with pytest.raises(ConfigError, match="must return one tensor of logits, got .*Outputs"):
        models.draft(models.torchvision_classifier, **arguments)


# torchvision.


@pytest.mark.parametrize("stem, side", [("small", 28), ("original", 7)])
def test_the_small_stem_keeps_the_resolution_that_the_original_divides_by_four(stem, side):
    sides = []
    with torch.device("meta"):
        model = build("resnet18", stem=stem)
        model.layer1.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
        model(torch.empty(2, *MNIST))
    assert sides == [side]


def test_an_activation_replaces_every_module_of_a_torchvision_classifier():
    with torch.device("meta"):
        kinds = [type(module) for module in build("resnet18", activation="tanh").modules()]
    assert nn.ReLU not in kinds and kinds.count(nn.Tanh) == 9  # the stem's and one a block, each used twice there


def test_torchvision_classifiers_work_out_of_place_and_drop_by_our_streams():
    with torch.device("meta"):
        model = build("torchvision", name="mobilenet_v2")
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert [type(module) for module in model.classifier] == [Dropout, nn.Linear]
    assert model.classifier[0].p == 0.2  # as torchvision has it


@pytest.mark.parametrize("name", ["resnet34", "efficientnet_b0", "shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet"])
def test_other_classifiers_of_torchvision_are_built_by_name(name):
    assert build_own(models.torchvision_classifier, make=models.draft, name=name, stem="original", activation=None)


def test_nothing_is_declared_where_the_native_library_of_torchvision_loads(monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert vision.has_native_operators()
    assert [path.name.split(".")[0] for path in loaded] == ["_C"]
