"""Registry of architectures; a new one needs a module in ``architectures`` and one row here.

Its names are in :data:`robustkd.core.known_names.ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from robustkd.core.devices import without_parameters, without_values
from robustkd.core.errors import UsageError
from robustkd.core.known_names import (
    ARCHITECTURES,
    check_architecture,
    family_of,
    unknown_architecture,
)
from robustkd.core.names import nearest
from robustkd.core.types import DataSource
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_seed
from robustkd.models.architectures.libraries import (
    timm_network,
    torchvision_network,
    with_prefix,
)
from robustkd.models.architectures.mobilenet import mobilenet_v1, mobilenet_v2
from robustkd.models.architectures.own_code import OwnCode
from robustkd.models.architectures.preactresnet import PreActResNet
from robustkd.models.architectures.pyramidnet import PyramidNet
from robustkd.models.architectures.resnet import SmallResNet, large_resnet
from robustkd.models.architectures.wide_resnet import WideResNet
from robustkd.models.classifier import Classifier, Spec, spec_for


@dataclass(frozen=True)
class Family:
    """Architectures that share a pattern of names.

    Attributes:
        usage: Pattern of the names, as shown to users.
        pattern: Regular expression of the whole name; its groups are passed to ``build``.
        examples: Names of existing architectures; contract tests run over them.
        build: Function from a spec and the groups of the name to a network; a group that is absent
            from the name is passed as None.
    """

    usage: str
    pattern: str
    examples: tuple[str, ...]
    build: Callable[..., nn.Module]


USUAL_RATE = 0.1
"""Default learning rate of every training."""
_SLOW_RATE = 0.02
"""About the rate of torchvision's recipes, 0.1 for 256 images, for batches of 64 images."""
LIBRARIES = ("torchvision", "timm", "own-code")
"""Families of networks that are not of this package."""
_SLOW = ("mobilenet", *LIBRARIES)


def _size(spec: Spec) -> tuple[int, int]:
    return spec.image_shape[1], spec.image_shape[2]


def _wide_resnet(spec: Spec, depth: str, width: str) -> nn.Module:
    channels = spec.image_shape[0]
    return WideResNet(int(depth), int(width), channels=channels, classes=spec.classes)


def _pyramidnet(spec: Spec, depth: str, alpha: str | None, bottleneck: str | None) -> nn.Module:
    if alpha is None:
        if depth not in _PYRAMIDS:
            short = " and ".join(f"pyramidnet-{known}" for known in _PYRAMIDS)
            raise UsageError(
                f"{spec.arch!r} has no alpha; expected pyramidnet-DEPTH-ALPHA[-bottleneck], or "
                f"one of the short names {short}"
            )
        alpha, bottleneck = _PYRAMIDS[depth]
    return PyramidNet(
        int(depth),
        int(alpha),
        bottleneck=bottleneck is not None,
        channels=spec.image_shape[0],
        classes=spec.classes,
    )


def _large_resnet(spec: Spec, depth: str) -> nn.Module:
    channels = spec.image_shape[0]
    return large_resnet(int(depth), channels=channels, classes=spec.classes, size=_size(spec))


def _preactresnet(spec: Spec) -> nn.Module:
    return PreActResNet(channels=spec.image_shape[0], classes=spec.classes)


def _small_resnet(spec: Spec, depth: str) -> nn.Module:
    return SmallResNet(int(depth), channels=spec.image_shape[0], classes=spec.classes)


def _mobilenet(spec: Spec, version: str, width: str | None) -> nn.Module:
    make = mobilenet_v1 if version == "1" else mobilenet_v2
    channels = spec.image_shape[0]
    return make(float(width or 1), channels=channels, classes=spec.classes, size=_size(spec))


def _of_torchvision(spec: Spec, name: str) -> nn.Module:
    return torchvision_network(name, classes=spec.classes, image_shape=spec.image_shape)


def _of_timm(spec: Spec, name: str) -> nn.Module:
    return timm_network(name, classes=spec.classes, image_shape=spec.image_shape)


def _own_code(spec: Spec) -> nn.Module:
    if not isinstance(spec.arch, OwnCode):
        raise UsageError(
            f"architecture {spec.arch!r} is code, which runs only where you name it yourself: "
            "with --arch or --student, or as models.OwnCode in Python"
        )
    return spec.arch.build(classes=spec.classes, image_shape=spec.image_shape)


# Alpha and block type of PyramidNet-110 and PyramidNet-200 in the paper of RobustKD.
_PYRAMIDS: dict[str, tuple[str, str | None]] = {
    "110": ("84", None),
    "200": ("240", "-bottleneck"),
}

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "wide-resnet": _wide_resnet,
    "pyramidnet": _pyramidnet,
    "resnet": _large_resnet,
    "small-resnet": _small_resnet,
    "preactresnet": _preactresnet,
    "mobilenet": _mobilenet,
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "own-code": _own_code,
}

FAMILIES: dict[str, Family] = {
    name: Family(*names, build=_BUILDERS[name]) for name, names in ARCHITECTURES.items()
}
"""Families of architectures by name; contract tests run over their examples."""


def check_name(arch: str) -> tuple[Family, tuple[str | None, ...]]:
    """Return the family of an architecture's name and the groups of its pattern.

    Raises:
        UsageError: If no family has such a name; the message suggests the nearest name.
    """
    found = family_of(arch)
    if found is not None:
        return FAMILIES[found[0]], found[1]
    check_architecture(arch)
    known = [name for family in FAMILIES.values() for name in family.examples]
    # Importing timm takes seconds, so its names are searched last.
    close = with_prefix(arch, "torchvision")
    if not close and not nearest(arch, known, otherwise=""):
        close = with_prefix(arch, "timm")
    raise unknown_architecture(arch, f"did you mean {close[0]!r}?" if close else "")


def learning_rate(arch: str) -> float:
    """Recommended initial learning rate of SGD with momentum for fresh networks of a name.

    It is 0.1 for networks of this package, and 0.02 for MobileNets and for networks of torchvision,
    of timm and of the user's own code. With soft targets, a learning rate of 0.1 can leave
    MobileNets and ShuffleNets at chance accuracy.
    """
    family, _ = family_of(arch) or ("", ())
    return _SLOW_RATE if family in _SLOW else USUAL_RATE


@usual_state
def build(spec: Spec, *, seed: int) -> Classifier:
    """Build a model with fresh weights.

    Args:
        spec: Specification of the model.
        seed: Seed of the weights; the state of the global random generator is kept.

    Returns:
        A classifier of float32 in channels_last memory format, on the CPU, in training mode.

    Raises:
        UsageError: If the architecture is unknown, or its numbers or the seed are out of range.

    Example:
        >>> import robustkd
        >>> spec = robustkd.Spec("wrn-10-1", classes=10, image_shape=(3, 32, 32))
        >>> model = robustkd.build(spec, seed=0)
        >>> sum(weight.numel() for weight in model.parameters())
        77850
    """
    family, parts = check_name(spec.arch)
    seed = check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # Leaves generators of accelerators unchanged.
        network = family.build(spec, *parts)
    _check_shapes_known(network)
    model = Classifier(spec, network)
    return model.to(memory_format=torch.channels_last)


def _check_shapes_known(network: nn.Module) -> None:
    """Raise an error for lazy modules, whose tensors have no shape before the first images."""
    tensors = chain(network.named_parameters(), network.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise UsageError(
            f"the shape of {lazy!r} is not known, since its module is a lazy one: run the network "
            "once on an image in the function that builds it"
        )


def layout(spec: Spec) -> Classifier:
    """Build a model whose parameters have names, shapes and types, but no values.

    Parameters take no memory, except for those of the user's own code that needs their values.

    Args:
        spec: Specification of the model.

    Raises:
        UsageError: If the architecture is unknown, or its numbers are out of range.
    """
    own = isinstance(spec.arch, OwnCode)
    # Some networks, such as RegNets, compute their widths by tensors and read the values. PyTorch
    # then raises a RuntimeError; the user's own code may make any other error of it.
    with suppress(Exception if own else RuntimeError), without_values():
        return build(spec, seed=0)
    if own:
        return build(spec, seed=0)
    with without_parameters():
        return build(spec, seed=0)


def builder(data: DataSource) -> Callable[[str, int], Classifier]:
    """Return a function from architecture and seed to a network for the images of ``data``.

    Pixels are normalised by the statistics of the training images. See :func:`build`.
    """
    described = spec_for("", data)

    def made(arch: str, seed: int) -> Classifier:
        return build(replace(described, arch=arch), seed=seed)

    return made
