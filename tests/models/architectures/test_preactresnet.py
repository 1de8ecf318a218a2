"""PreActResNet-18: its size, its names, and its forward pass written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.models import Classifier, Spec, build, parameters


def preact(channels: int = 3, size: int = 32, classes: int = 10) -> Classifier:
    return build(Spec("preactresnet-18", classes, (channels, size, size)), seed=0)


def test_its_size_is_the_published_one():
    """11,171,146 parameters for ten classes of CIFAR, as BackdoorBench's network has."""
    assert parameters(preact()) == 11_171_146


def test_its_names_are_the_usual_ones():
    found = preact().network.state_dict()
    assert list(found)[:3] == ["conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"]
    assert [name for name in found if "shortcut" in name] == [
        f"layer{group}.0.shortcut.0.weight" for group in (2, 3, 4)
    ]
    assert list(found)[-2:] == ["linear.weight", "linear.bias"]


def naive(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Each block as an equation; the shortcut of a block of another shape is a 1x1 convolution."""

    def active(norm: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{norm}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in range(1, 5):
        for block in range(2):
            name, stride = f"layer{group}.{block}", 2 if group > 1 and not block else 1
            first = active(f"{name}.bn1", x)
            inner = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(active(f"{name}.bn2", inner), state[f"{name}.conv2.weight"], padding=1)
            if (projection := state.get(f"{name}.shortcut.0.weight")) is not None:
                x = F.conv2d(first, projection, stride=stride)
            x = x + inner
    return x.flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]


def test_logits_are_those_of_the_equations():
    network = preact(1, 13).network.double()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if ".bn" in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    images = torch.randn(2, 1, 13, 13, generator=generator, dtype=torch.float64)
    found = network.eval()(images)
    torch.testing.assert_close(found, naive(network.state_dict(), images))
