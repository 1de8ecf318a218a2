"""Small residual networks: the paper's sizes, its forward pass written out, taps before ReLU."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.models import Classifier, Spec, build, parameters
from robustkd.models.features import taps
from robustkd.models.features.stages import stages


def small(arch: str, channels: int = 3, size: int = 8) -> Classifier:
    return build(Spec(arch, classes=10, image_shape=(channels, size, size)), seed=0)


@pytest.mark.parametrize(
    ("arch", "published"),
    [("resnet-20", 0.27e6), ("resnet-32", 0.46e6), ("resnet-56", 0.85e6), ("resnet-110", 1.7e6)],
)
def test_sizes_are_those_of_the_paper(arch, published):
    with torch.device("meta"):
        assert parameters(small(arch)) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("depth", "channels"), [(8, 1), (20, 3)])
def test_sizes_follow_the_layout(depth, channels):
    total, inputs = 9 * channels * 16 + 2 * 16, 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += 9 * inputs * outputs + 2 * outputs + 9 * outputs**2 + 2 * outputs
            inputs = outputs
    assert parameters(small(f"resnet-{depth}", channels)) == total + 65 * 10


def naive_resnet(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Section 4.2 as printed: each block ends with the ReLU of the sum."""

    def convolved(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            state[f"{norm}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = convolved("conv1", "bn1", x).relu()
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{group}.{block}", 2 if group > 1 and not block else 1
            inner = convolved(f"{name}.conv1", f"{name}.bn1", x, stride).relu()
            inner = convolved(f"{name}.conv2", f"{name}.bn2", inner)
            shortcut = torch.zeros_like(inner)
            quarter = (inner.shape[1] - x.shape[1]) // 2
            shortcut[:, quarter : quarter + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (inner + shortcut).relu()
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("arch", "blocks"), [("resnet-8", 1), ("resnet-14", 2)])
def test_logits_are_those_of_the_paper_layer_by_layer(arch, blocks):
    network = small(arch, size=9).network.double()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if ".bn" in name or name.startswith("bn"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    images = torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64)
    expected = naive_resnet(network.state_dict(), images, blocks)
    torch.testing.assert_close(network.eval()(images), expected)


def test_stages_are_its_groups_before_relu():
    model = small("resnet-14", size=16)
    images = torch.rand(3, 3, 16, 16)
    found = stages(model, images)
    assert found == ("network.layer1.1", "network.layer2.1", "network.layer3.1")
    with taps.read(model.eval(), found) as features:
        model(images)
    shapes = [tuple(features[name].shape[1:]) for name in found]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert all((features[name] < 0).any() for name in found)


@pytest.mark.parametrize("depth", [2, 10, 16])
def test_other_depths_are_refused(depth):
    text = f"ResNet depth is {depth}; expected 6 n + 2 with n >= 1: 8, 14, 20, 32, ..."
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        small(f"resnet-{depth}")
