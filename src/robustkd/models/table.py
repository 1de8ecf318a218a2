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
from robustkd.models.wrn import WideResNet


@dataclass(frozen=True)
class Family:
    """Architectures that share a pattern of names.

    Attributes:
        usage: How a name is written, for people.
        pattern: Regular expression of the whole name; its integer groups go to ``build``.
        examples: Names that exist; contract tests run over them.
        build: Network from the numbers in the name, ``channels`` and ``classes``.
    """

    usage: str
    pattern: str
    examples: tuple[str, ...]
    build: Callable[..., nn.Module]


FAMILIES: dict[str, Family] = {
    "wide-resnet": Family(
        "wrn-DEPTH-WIDTH",
        r"wrn-([0-9]{1,3})-([0-9]{1,3})",
        ("wrn-10-1", "wrn-16-2", "wrn-28-4"),
        WideResNet,
    ),
}


def check_name(arch: str) -> tuple[Family, tuple[int, ...]]:
    """Find the family and the numbers of an architecture's name.

    Raises:
        UsageError: If no family has such a name; the nearest ones are named.
    """
    for family in FAMILIES.values():
        if found := re.fullmatch(family.pattern, arch):
            return family, tuple(int(number) for number in found.groups())
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
    family, numbers = check_name(spec.arch)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of the accelerators
        network = family.build(*numbers, channels=spec.image_shape[0], classes=spec.classes)
    model = Classifier(spec, network)
    return model.to(memory_format=torch.channels_last)


def parameters(model: nn.Module) -> int:
    """Count the learnable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
