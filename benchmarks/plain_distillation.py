"""Distillation as a user's own script does it in plain PyTorch, for the comparison of speed.

The script is written as the tutorials of PyTorch and the published code of overhaul distillation
are: images are augmented and normalised one by one, networks keep their default memory format, and
the loss of every step is read for the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TEMPERATURE = 4.0
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
"""Settings of the optimiser, which are those of RobustKD."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images in memory, which are changed one by one, as the data sets of torchvision do it."""

    def __init__(
        self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        channels_last = images.permute(0, 2, 3, 1).numpy()
        self.images = channels_last[..., 0] if images.shape[1] == 1 else channels_last
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(list(mean), list(std)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class FeatureReader:
    """Outputs of some modules of a network in its last forward pass."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, Tensor] = {}
        for name in names:
            network.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str):  # noqa: ANN202 (a function for PyTorch)
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self.features[name] = output

        return keep


def margin(norm: nn.BatchNorm2d) -> Tensor:
    """Mean of the negative part of a normal distribution, for each channel."""
    mean, std = norm.bias.detach().double(), norm.weight.detach().double().abs()
    below = torch.special.ndtr(-mean / std)
    density = torch.exp(-0.5 * (mean / std) ** 2) / math.sqrt(2 * math.pi)
    return (mean - std * density / below.clamp_min(1e-6)).float()[None, :, None, None]


def overhaul_loss(source: Tensor, target: Tensor, least: Tensor) -> Tensor:
    """Partial L2 distance with margin, arXiv 1904.01866, summed over everything."""
    target = torch.max(target, least)
    loss = F.mse_loss(source, target, reduction="none")
    return (loss * ((source > target) | (target > 0)).float()).sum()


def loader(pictures: Pictures, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of changed images in random order, made by this process."""
    return DataLoader(pictures, batch_size=batch_size, shuffle=True, drop_last=True)


def optimiser(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with the settings of RobustKD."""
    return torch.optim.SGD(parameters, **SGD)


def distil_logits(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None,
) -> None:
    """Distil by soft targets; ``dtype`` is that of autocast."""
    teacher.eval()
    student.train()
    steps = optimiser(student.parameters())
    total = 0.0
    for images, labels in batches:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            with torch.no_grad():
                taught = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1),
                F.softmax(taught / TEMPERATURE, 1),
                reduction="batchmean",
            )
            loss = F.cross_entropy(logits, labels) + TEMPERATURE**2 * soft
        steps.zero_grad()
        loss.backward()
        steps.step()
        total += loss.item()


def distil_features(
    teacher: nn.Module,
    student: nn.Module,
    taps: Sequence[str],
    batches: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None,
) -> None:
    """Distil by overhaul distillation of the BatchNorm layers ``taps`` of both networks."""
    teacher.eval()
    student.train()
    norms = [teacher.get_submodule(name) for name in taps]
    widths = [student.get_submodule(name).num_features for name in taps]
    connectors = nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(width, norm.num_features, 1, bias=False), nn.BatchNorm2d(norm.num_features)
        )
        for width, norm in zip(widths, norms, strict=True)
    )
    margins = [margin(norm) for norm in norms]
    reading, learning = FeatureReader(teacher, taps), FeatureReader(student, taps)
    steps = optimiser([*student.parameters(), *connectors.parameters()])
    total = 0.0
    for images, labels in batches:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            with torch.no_grad():
                teacher(images)
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            for stage, name in enumerate(taps):
                source = connectors[stage](learning.features[name])
                target = reading.features[name].detach()
                weight = 2.0 ** (stage + 1 - len(taps)) / len(images) / 1000
                loss = loss + weight * overhaul_loss(source, target, margins[stage])
        steps.zero_grad()
        loss.backward()
        steps.step()
        total += loss.item()
