"""The table of architectures: a new one is a file beside this and a row here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from robustkd.errors import UsageError
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.mobilenet import mobilenet_v2
from robustkd.models.resnet import SmallResNet
from robustkd.models.wrn import WideResNet


@dataclass(frozen=True)
class Family:
    """Architectures that share a pattern of names.

    Attributes:
        usage: How a name is written, for people.
        pattern: Regular expression of the whole name; its groups go to ``build``.
        examples: Names that exist; contract tests run over them.
        build: Network from a spec and the groups of the name, None for one that is not there.
    """

    usage: str
    pattern: str
    examples: tuple[str, ...]
    build: Callable[..., nn.Module]


def _wide_resnet(spec: Spec, depth: str, width: str) -> nn.Module:
    channels = spec.image_shape[0]
    return WideResNet(int(depth), int(width), channels=channels, classes=spec.classes)


def _small_resnet(spec: Spec, depth: str) -> nn.Module:
    return SmallResNet(int(depth), channels=spec.image_shape[0], classes=spec.classes)


def _mobilenet_v2(spec: Spec, width: str | None) -> nn.Module:
    channels, *size = spec.image_shape
    return mobilenet_v2(
        float(width or 1), channels=channels, classes=spec.classes, size=(size[0], size[1])
    )


FAMILIES: dict[str, Family] = {
    "wide-resnet": Family(
        "wrn-DEPTH-WIDTH",
        r"wrn-([0-9]{1,3})-([0-9]{1,3})",
        ("wrn-10-1", "wrn-16-2", "wrn-28-4"),
        _wide_resnet,
    ),
    "small-resnet": Family(
        "resnet-DEPTH",
        r"resnet-([0-9]{1,4})",
        ("resnet-8", "resnet-14", "resnet-20"),
        _small_resnet,
    ),
    "mobilenet-v2": Family(
        "mobilenet-v2[-WIDTH]",
        r"mobilenet-v2(?:-([0-9]{1,2}(?:\.[0-9]{1,3})?))?",
        ("mobilenet-v2", "mobilenet-v2-0.25"),
        _mobilenet_v2,
    ),
}


def check_name(arch: str) -> tuple[Family, tuple[str | None, ...]]:
    """Find the family of an architecture's name, and the parts that vary.

    Raises:
        UsageError: If no family has such a name; the nearest ones are named.
    """
    for family in FAMILIES.values():
        if found := re.fullmatch(family.pattern, arch):
            return family, found.groups()
    known = [name for family in FAMILIES.values() for name in family.examples]
    near = difflib.get_close_matches(arch, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"for example {known[0]!r}"
    usages = ", ".join(family.usage for family in FAMILIES.values())
    raise UsageError(f"unknown architecture {arch!r}; expected {usages}: {hint}")


def build(spec: Spec, *, seed: int) -> Classifier:
    """Build a model with fresh weights.

    Args:
        spec: What to build.
        seed: The same seed gives the same weights; the global generator is left as it was.

    Returns:
        A classifier in channels_last memory format, on the CPU, in training mode.

    Raises:
        UsageError: If the architecture is unknown or impossible.
    """
    family, parts = check_name(spec.arch)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of the accelerators
        network = family.build(spec, *parts)
    model = Classifier(spec, network)
    return model.to(memory_format=torch.channels_last)


def parameters(model: nn.Module) -> int:
    """Count the learnable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
