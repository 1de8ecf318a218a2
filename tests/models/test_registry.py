"""Architectures: sizes against the paper's layout, seeds, shapes, refusals by their text."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.attacks import Teaching
from robustkd.core.errors import UsageError
from robustkd.data import InMemory, Labelled
from robustkd.models import (
    FAMILIES,
    USUAL_RATE,
    Spec,
    build,
    check_name,
    learning_rate,
    parameters,
    pixel_statistics,
)
from robustkd.training.config import TrainingConfig

EXAMPLES = [arch for family in FAMILIES.values() for arch in family.examples]
USAGES = ", ".join(family.usage for family in FAMILIES.values())


def tiny(channels: int = 1, **changes: object) -> Spec:
    return Spec("wrn-10-1", **{"classes": 3, "image_shape": (channels, 8, 8), **changes})


def wrn_parameters(depth: int, width: int, channels: int, classes: int) -> int:
    """Table 1 of the paper, layer by layer."""
    total = 9 * channels * 16
    inputs = 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            # A shortcut of 1 x 1 where the width changes; never where only the stride does.
            total += inputs * outputs if block == 0 and inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


@pytest.mark.parametrize(
    ("arch", "published"), [("wrn-16-2", 691_674), ("wrn-28-10", 36_479_194), ("wrn-40-2", 2.2e6)]
)
def test_sizes_are_those_of_the_paper(arch, published):
    with torch.device("meta"):
        model = build(Spec(arch, classes=10, image_shape=(3, 32, 32)), seed=0)
    assert parameters(model) == pytest.approx(published, rel=0 if published != 2.2e6 else 0.03)


@pytest.mark.parametrize("depth", [10, 22])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 43)])
def test_sizes_follow_the_layout(depth, width, channels, classes):
    spec = Spec(f"wrn-{depth}-{width}", classes=classes, image_shape=(channels, 8, 8))
    with torch.device("meta"):
        assert parameters(build(spec, seed=0)) == wrn_parameters(depth, width, channels, classes)


@pytest.mark.parametrize("arch", EXAMPLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_example_gives_logits_and_learns_everywhere(arch, channels):
    model = build(Spec(arch, classes=5, image_shape=(channels, 8, 8)), seed=0)
    assert model.training
    logits = model(torch.rand(3, channels, 8, 8))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (9, 4), (17, 31)])
def test_odd_image_sizes_fit(size):
    model = build(tiny(3), seed=0).eval()
    assert model(torch.rand(2, 3, *size)).shape == (2, 3)


def test_strides_are_one_two_two():
    network = build(tiny(), seed=0).network
    x = network.stem(torch.rand(1, 1, 12, 12))
    sizes = []
    for group in network.groups:
        x = group(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(16, 12, 12), (32, 6, 6), (64, 3, 3)]


def naive_wrn(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Figure 1 (b) of the paper: BN, ReLU, convolution, twice; the projection reads the former."""

    def active(name: str, x: Tensor) -> Tensor:
        parts = (state[f"{name}.{key}"] for key in ("running_mean", "running_var"))
        mean, var = (part.view(1, -1, 1, 1) for part in parts)
        weight, bias = (state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = F.conv2d(x, state["stem.weight"], padding=1)
    for group in range(3):
        for block in range(blocks):
            name, stride = f"groups.{group}.{block}", 2 if group and not block else 1
            first = active(f"{name}.bn1", x)
            inner = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            outer = F.conv2d(active(f"{name}.bn2", inner), state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.shortcut.weight" in state:
                x = F.conv2d(first, state[f"{name}.shortcut.weight"], stride=stride)
            x = x + outer
    pooled = active("bn", x).flatten(2).mean(2)
    return pooled @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize(("arch", "blocks"), [("wrn-10-2", 1), ("wrn-16-1", 2)])
def test_logits_are_those_of_the_paper_layer_by_layer(arch, blocks):
    network = build(Spec(arch, classes=4, image_shape=(3, 8, 8)), seed=0).network.double()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if ".bn" in name or name.startswith("bn."):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    images = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    expected = naive_wrn(network.state_dict(), images, blocks)
    torch.testing.assert_close(network.eval()(images), expected)


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(tiny(), seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = build(tiny(), seed=1).state_dict(), build(tiny(), seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.stem.weight"], other["network.stem.weight"])


def test_weights_are_channels_last():
    for module in build(tiny(3), seed=0).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_start_with_the_variance_of_he():
    model = build(Spec("wrn-10-4", classes=3, image_shape=(3, 8, 8)), seed=0)
    weight = model.network.groups[2][0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert model.network.head.bias.abs().sum() == 0


def test_normalisation_comes_first():
    images = torch.rand(4, 3, 8, 8)
    base = build(tiny(3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)), seed=0).eval()
    moved = build(tiny(3, mean=(0.35, 0.45, 0.55), std=(0.5, 0.25, 1.0)), seed=0).eval()
    torch.testing.assert_close(moved(images + 0.25), base(images))
    assert not torch.allclose(moved(images), base(images))
    # Pixels that are the mean of their channel are zeros to the network.
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert torch.equal(base(mean), base.network(torch.zeros(2, 3, 8, 8)))


def test_normalisation_divides_by_the_deviation_of_each_channel():
    layer = build(tiny(3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25)), seed=0).normalise
    ones = layer(torch.ones(1, 3, 1, 1))
    assert ones.flatten().tolist() == [1.0, 1.0, 0.0]
    assert layer(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [0.0, -1.0, -4.0]


def test_pixel_statistics_are_those_of_all_training_pixels():
    images = torch.randint(256, (30, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    images[:, 2] = 51
    held = Labelled(images.to(torch.uint8), torch.arange(30) % 2)
    few = Labelled(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.arange(2))
    data = InMemory("toy", ("a", "b"), held, few, few)
    mean, std = pixel_statistics(data)
    pixels = (images.double() / 255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-6)
    assert std[:2] == pytest.approx(pixels[:2].std(1, unbiased=False).tolist(), abs=1e-6)
    # A channel of one value must not divide by zero.
    assert mean[2] == 0.2
    assert std[2] == 1e-3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: build(Spec("wrn-11-1", 3, (1, 8, 8)), seed=0),
            "WRN depth is 11; expected 6 n + 4 with n >= 1: 10, 16, 22, 28, ...",
        ),
        (
            lambda: build(Spec("wrn-4-1", 3, (1, 8, 8)), seed=0),
            "WRN depth is 4; expected 6 n + 4 with n >= 1: 10, 16, 22, 28, ...",
        ),
        (
            lambda: build(Spec("wrn-10-0", 3, (1, 8, 8)), seed=0),
            "WRN width is 0; expected at least 1",
        ),
        (
            lambda: check_name("wrn-16"),
            f"unknown architecture 'wrn-16'; expected {USAGES}: did you mean 'wrn-16-2'?",
        ),
        (
            lambda: check_name("resnet18"),
            f"unknown architecture 'resnet18'; expected {USAGES}: did you mean "
            "'torchvision/resnet18'?",
        ),
        (
            lambda: check_name("vit_base_patch16_224"),
            f"unknown architecture 'vit_base_patch16_224'; expected {USAGES}: did you mean "
            "'timm/vit_base_patch16_224'?",
        ),
        (
            lambda: check_name("?"),
            f"unknown architecture '?'; expected {USAGES}: for example 'wrn-10-1'",
        ),
        (
            lambda: check_name("wrn-10-1\n"),
            f"unknown architecture 'wrn-10-1\\n'; expected {USAGES}: did you mean 'wrn-10-1'?",
        ),
        (lambda: tiny(classes=1), "classes is 1; expected at least 2"),
        (
            lambda: tiny(image_shape=(2, 8, 8)),
            "image shape is (2, 8, 8); expected (1 or 3, height, width) in pixels",
        ),
        (
            lambda: tiny(image_shape=(1, 8, 0)),
            "image shape is (1, 8, 0); expected (1 or 3, height, width) in pixels",
        ),
        (
            lambda: tiny(mean=(0.5, 0.5)),
            "mean is (0.5, 0.5) and std is (0.5,); expected 1 finite values each, std above 0",
        ),
        (
            lambda: tiny(std=(0.0,)),
            "mean is (0.5,) and std is (0.0,); expected 1 finite values each, std above 0",
        ),
        (
            lambda: tiny(std=(float("nan"),)),
            "mean is (0.5,) and std is (nan,); expected 1 finite values each, std above 0",
        ),
    ],
)
def test_refusals_say_what_is_wrong(make, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        make()


def test_a_name_of_endless_digits_is_refused_at_once():
    with pytest.raises(UsageError, match=r"^unknown architecture 'wrn-1111"):
        check_name("wrn-" + "1" * 5000 + "-1")


@pytest.mark.parametrize(
    ("arch", "rate"),
    [
        ("wrn-10-1", 0.1),
        ("resnet-18", 0.1),
        ("mobilenet-v1", 0.02),
        ("mobilenet-v2-0.25", 0.02),
        ("torchvision/shufflenet_v2_x0_5", 0.02),
        ("timm/resnet18", 0.02),
        ("nets.mine:ResNet50", 0.02),
    ],
)
def test_mobilenets_and_networks_of_libraries_learn_slowly(arch, rate):
    assert learning_rate(arch) == rate


def test_the_usual_rate_is_the_default_of_every_training():
    assert USUAL_RATE == TrainingConfig().lr == Teaching(epochs=1).lr
