"""Names of architectures, data sets and defences, which can be checked without importing torch.

Importing torch takes longer than a user should wait for a mistyped name. The functions that belong
to the names are in the registries :data:`robustkd.models.FAMILIES`,
:data:`robustkd.data.SOURCES`, :data:`robustkd.data.PICTURES` and
:data:`robustkd.teacher.defences.registry.DEFENCES`, and tests compare both.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest


class ArchitectureNames(NamedTuple):
    """Names of the architectures of one family.

    Attributes:
        usage: Pattern of the names, as shown to users.
        pattern: Regular expression of the whole name; its groups are passed to the function that
            builds the network.
        examples: Names of existing architectures; contract tests run over them.
    """

    usage: str
    pattern: str
    examples: tuple[str, ...]


# The first pattern that matches is used: 50 and 152 are also of the form 6 n + 2.
ARCHITECTURES: dict[str, ArchitectureNames] = {
    "wide-resnet": ArchitectureNames(
        "wrn-DEPTH-WIDTH",
        r"wrn-([0-9]{1,3})-([0-9]{1,3})",
        ("wrn-10-1", "wrn-16-2", "wrn-28-4"),
    ),
    "pyramidnet": ArchitectureNames(
        "pyramidnet-DEPTH-ALPHA[-bottleneck]",
        r"pyramidnet-([0-9]{1,3})(?:-([0-9]{1,3})(-bottleneck)?)?",
        ("pyramidnet-14-12", "pyramidnet-20-12-bottleneck"),
    ),
    "resnet": ArchitectureNames(
        "resnet-18|34|50|101|152",
        r"resnet-(18|34|50|101|152)",
        ("resnet-18",),
    ),
    "small-resnet": ArchitectureNames(
        "resnet-DEPTH",
        r"resnet-([0-9]{1,4})",
        ("resnet-8", "resnet-14", "resnet-20"),
    ),
    "preactresnet": ArchitectureNames(
        "preactresnet-18",
        r"preactresnet-18",
        ("preactresnet-18",),
    ),
    "mobilenet": ArchitectureNames(
        "mobilenet-v1|v2[-WIDTH]",
        r"mobilenet-v([12])(?:-([0-9]{1,2}(?:\.[0-9]{1,3})?))?",
        ("mobilenet-v1-0.25", "mobilenet-v2", "mobilenet-v2-0.25"),
    ),
    "torchvision": ArchitectureNames(
        "torchvision/NAME",
        r"torchvision/(\w{1,99})",
        ("torchvision/shufflenet_v2_x0_5",),
    ),
    "timm": ArchitectureNames(
        "timm/NAME",
        r"timm/([\w.]{1,99})",
        ("timm/mobilenetv3_small_050",),
    ),
    "own-code": ArchitectureNames(
        "PACKAGE.MODULE:CALLABLE",
        r"[\w.]{1,199}:[\w.]{1,99}",
        (),
    ),
}
"""Families of architectures, in the order in which their patterns are tried."""

DATA = (
    "cifar-10",
    "cifar-100",
    "digits",
    "fashion-mnist",
    "flowers-102",
    "gtsrb",
    "tiny-imagenet",
)
"""Names of data sets, in alphabetical order."""

HUB = "hf:"
"""Prefix of the names of data sets of the Hugging Face Hub."""

DEFENCES = (
    "detox",
    "ft",
    "ft-sam",
    "clp",
    "anp",
    "i-bau",
    "fine-pruning",
    "nad",
    "sau",
    "fst",
    "rnp",
    "bti-dbf",
    "universal",
)
"""Names of defences that clean a network, in the order in which they are listed."""


def family_of(arch: str) -> tuple[str, tuple[str | None, ...]] | None:
    """Return the family of an architecture and the groups of its pattern; None if there is none.

    >>> family_of("wrn-16-2"), family_of("wrn-16")
    (('wide-resnet', ('16', '2')), None)
    """
    for family, names in ARCHITECTURES.items():
        if found := re.fullmatch(names.pattern, arch):
            return family, found.groups()
    return None


def unknown_architecture(arch: str, hint: str = "") -> UsageError:
    """Return the error for the name of an architecture that belongs to no family.

    Args:
        arch: The name.
        hint: What the user probably meant; if empty, the nearest of the examples.
    """
    examples = [name for names in ARCHITECTURES.values() for name in names.examples]
    hint = hint or nearest(arch, examples, otherwise=f"for example {examples[0]!r}")
    usages = ", ".join(names.usage for names in ARCHITECTURES.values())
    return UsageError(f"unknown architecture {arch!r}; expected {usages}: {hint}")


def check_architecture(arch: str) -> None:
    """Raise an error for a mistyped architecture, if no library is needed to tell what was meant.

    A name that could be one of torchvision or timm without its prefix is accepted here, and refused
    by :func:`robustkd.models.check_name`, which imports these libraries to suggest a name. Their
    names are identifiers of Python.

    Raises:
        UsageError: If no family has such a name.
    """
    if family_of(arch) is None and not arch.isidentifier():
        raise unknown_architecture(arch)


def is_folder(data: str) -> bool:
    """Return whether this is the path of a folder of images, and not the name of a data set."""
    if data in DATA or data.startswith(HUB):
        return False
    return os.sep in data or os.path.isdir(data)


def check_data(data: str) -> None:
    """Raise an error for a name of data that is neither known nor a folder.

    Raises:
        UsageError: If it is neither; the message suggests the nearest name.
    """
    if data in DATA or data.startswith(HUB) or is_folder(data):
        return
    hint = nearest(data, DATA, otherwise="choose one of these, or give a folder")
    raise UsageError(f"unknown data source {data!r}; expected {', '.join(DATA)}; {hint}")


def check_defence(name: str) -> None:
    """Raise an error for the name of a defence that does not exist.

    Raises:
        UsageError: If the name is unknown; the message suggests the nearest one.
    """
    if name not in DEFENCES:
        raise unknown_defence(name)


def unknown_defence(name: str) -> UsageError:
    """Return the error for the name of a defence that does not exist."""
    return UsageError(f"defence is {name!r}; {nearest(name, DEFENCES)}")
