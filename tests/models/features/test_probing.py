"""Layers are found by what they do in a forward pass, and the network stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkd import models
from robustkd.models.features.probing import (
    batchnorm_after,
    calls,
    last_parametric_layer,
    linear_head,
)

IMAGES = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def build(arch: str) -> models.Classifier:
    return models.build(models.Spec(arch, 10, (1, 32, 32)), seed=0)


class Swapped(nn.Module):
    """Runs its modules in another order than the one in which they are defined."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)
        self.first = nn.Conv2d(1, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(images)))


@pytest.mark.parametrize("arch", ["wrn-10-1", "timm/test_vit"])
def test_the_head_is_the_layer_that_makes_the_logits(arch):
    model = build(arch)
    assert linear_head(model, IMAGES) is model.network.head
    assert last_parametric_layer(model, IMAGES) is model.network.head
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_order_is_that_of_the_forward_pass():
    network = Swapped()
    assert last_parametric_layer(network, IMAGES) is network.last
    assert batchnorm_after(network, IMAGES) == [(network.first, network.norm), (network.last, None)]
    made, logits = calls(network, IMAGES)
    assert [call.module for call in made] == [network.first, network.norm, network.last, network]
    assert made[-1].inputs == (IMAGES,)
    assert made[-1].output is logits
    assert not logits.requires_grad
    assert network.norm.num_batches_tracked == 0


def test_a_network_may_have_no_linear_head():
    assert linear_head(Swapped(), IMAGES) is None


class PreActivation(nn.Module):
    """A block whose sum is read by the BatchNorm of the next block."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shortcut = self.stem(images)
        out = self.conv(self.norm1(shortcut))
        if self.in_place:
            out += shortcut
        else:
            out = out + shortcut
        return self.norm2(out)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_sum_is_not_the_output_of_a_convolution(in_place):
    network = PreActivation(in_place=in_place)
    expected = [(network.stem, network.norm1), (network.conv, None)]
    assert batchnorm_after(network, IMAGES) == expected


def test_logits_that_are_changed_in_place_are_not_the_output_of_a_layer():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1024, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.head(images.flatten(1))
            logits *= 2
            return logits

    assert linear_head(Network(), IMAGES) is None
