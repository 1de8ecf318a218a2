"""Small networks that defences clean in the tests, and settings that make them quick."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustkd import data
from robustkd.teacher.defences.base import Defence
from robustkd.teacher.defences.fst import FST
from robustkd.teacher.defences.tuning import Tuning
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

DIGITS = data.load("digits", train=400, validation=100, test=100)
_FEW: dict[str, Any] = {"steps": 20, "rounds": 1, "unlearn_epochs": 2, "batch_size": 100}
_FEW |= {"mask_steps": 1, "generator_steps": 1}


class Small(nn.Module):
    """Two convolutions with BatchNorm, pooling, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.relu1(self.bn1(self.conv1(images)))
        return self.head(self.pool(self.relu2(self.bn2(self.conv2(first)))).flatten(1))


def trained() -> nn.Module:
    """A small network that knows the digits, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small()
    fit(Supervised(network), DIGITS, epochs=20, batch_size=20, lr=0.1)
    return network.eval()


def quick(defence: Defence, *, epochs: int = 1) -> Defence:
    """The same defence with few steps."""
    # Beside a large old classifier in a small network, the paper's alpha outweighs the task.
    short: dict[str, Any] = {"alpha": 0.02} if isinstance(defence, FST) else {}
    for field in fields(defence):
        value = getattr(defence, field.name)
        if isinstance(value, Tuning):
            short[field.name] = replace(value, epochs=epochs, batch_size=40)
        elif field.name in _FEW:
            short[field.name] = min(value, _FEW[field.name])
    return replace(defence, **short)


class Linear(nn.Module):
    """Logits of flattened pixels, with weights given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.weight = nn.Parameter(weight.clone())
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class Attention(nn.Module):
    """Patches, one layer of fused attention, and a linear classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.mixed, self.head = nn.Linear(16, 48), nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        parts = self.mixed(tokens).view(len(images), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts)
        return self.head(seen.transpose(1, 2).flatten(2).mean(1))
