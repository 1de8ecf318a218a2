"""Networks of torchvision and timm by their names, without weights and without any download.

Only this module imports these libraries, and only when one of their networks is requested.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.types import INTERPOLATIONS

_INCEPTIONS = ("googlenet", "inception_v3")


CROP_MODES: Mapping[str, str] = {
    "center": "centred-square",
    "squash": "squash",
    "border": "centred-square",
}
"""Way of resizing by the name of timm's crop mode; borders are not added."""


class Preprocessing(NamedTuple):
    """Preprocessing of the published weights of an architecture.

    Attributes:
        image_shape: Channels, height and width in pixels.
        mean: Mean per channel, of pixels in [0, 1].
        std: Standard deviation per channel, of pixels in [0, 1].
        crop: Share of the shorter side that is kept, in (0, 1]; with ``squash``, of both sides.
        resize: One of :data:`robustkd.core.types.RESIZES`.
        interpolation: One of :data:`robustkd.core.types.INTERPOLATIONS`.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    resize: str = "centred-square"
    interpolation: str = "bilinear"


def torchvision_network(name: str, *, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a classifier of torchvision with fresh weights.

    Args:
        name: Name in torchvision.
        classes: Number of logits.
        image_shape: Channels, height and width in pixels.

    Raises:
        UsageError: If there is no such classifier, or it does not accept images of this shape.
    """
    from torchvision import models

    make = models.get_model_builder(_known("torchvision", name, _torchvision_names()))
    channels, *size = image_shape
    options: dict[str, object] = {"num_classes": classes}
    if name.startswith("vit_"):
        options["image_size"] = size[0]
    if name.startswith("maxvit_"):
        options["input_size"] = tuple(size)
    if name in _INCEPTIONS:
        # With auxiliary heads, the output would be a tuple.
        options.update(aux_logits=False, init_weights=True)
    try:
        network: nn.Module = make(weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise UsageError(
            f"torchvision/{name} does not accept images of shape {image_shape}: {error}"
        ) from error
    return network if channels == 3 else with_input_channels(network, channels)


def timm_network(name: str, *, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a classifier of timm with fresh weights.

    Args:
        name: Name in timm.
        classes: Number of logits.
        image_shape: Channels, height and width in pixels.

    Raises:
        UsageError: If there is no such classifier, or it does not accept images of this shape.
    """
    import timm

    config = _timm_config(name)
    options: dict[str, Any] = {"img_size": image_shape[1:]} if config.fixed_input_size else {}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=image_shape[0], **options
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and torch.get_default_device().type == "meta":
            raise  # The network may need values of tensors while it is built.
        raise UsageError(
            f"timm/{name} does not accept images of shape {image_shape}: {error}"
        ) from error
    return network


def preprocessing(arch: str) -> Preprocessing | None:
    """Preprocessing that torchvision or timm publish for the weights of an architecture.

    Args:
        arch: Name of any architecture, with its prefix.

    Returns:
        The preprocessing; None for architectures of neither library, and for those of torchvision
        without published weights.

    Raises:
        UsageError: If the library has no such architecture.
    """
    library, _, name = arch.partition("/")
    if library == "timm":
        config = _timm_config(name)
        return Preprocessing(
            config.input_size,
            tuple(config.mean),
            tuple(config.std),
            crop=share(config.crop_pct),
            resize=CROP_MODES.get(config.crop_mode, "centred-square"),
            interpolation=_interpolation(config.interpolation),
        )
    if library != "torchvision":
        return None
    from torchvision import models

    weights = models.get_model_weights(_known("torchvision", name, _torchvision_names()))
    default = getattr(weights, "DEFAULT", None)
    if default is None:
        return None
    steps = default.transforms()
    size = steps.crop_size[0]
    mean, std = tuple(steps.mean), tuple(steps.std)
    if name in _INCEPTIONS:
        # With their published weights, these networks normalise their input once more
        # (transform_input), which makes this of it.
        mean = std = (0.5,) * 3
    return Preprocessing(
        (3, size, size),
        mean,
        std,
        crop=min(1.0, size / steps.resize_size[0]),
        interpolation=_interpolation(steps.interpolation.value),
    )


def share(crop_pct: float) -> float:
    """Return the share of an image that is kept for a ``crop_pct`` of timm.

    Values above 1 mean that the image is resized to less than the input of the network and padded.
    The whole image is used instead.
    """
    return min(1.0, float(crop_pct))


def _interpolation(name: str) -> str:
    """Return the name of a filter; timm leaves it empty for the default of torchvision."""
    return name if name in INTERPOLATIONS else "bilinear"


def with_input_channels(network: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution by a fresh one with another number of input channels.

    Args:
        network: The network; it is changed in place.
        channels: Number of input channels.

    Raises:
        UsageError: If the network has no convolution.
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            own = inspect.signature(nn.Conv2d).parameters
            options = {key: getattr(module, key) for key in own if hasattr(module, key)}
            options |= {"in_channels": channels, "bias": module.bias is not None}
            fresh = nn.Conv2d(**options)
            nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
            network.set_submodule(path, fresh)
            return network
    raise UsageError(
        f"{type(network).__name__} has no convolution; expected one that can be replaced for "
        f"images of {channels} channels"
    )


def _torchvision_names() -> Iterable[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _timm_config(name: str) -> Any:  # noqa: ANN401 (timm's own type; timm is imported late)
    import timm

    # Only plain names are allowed: timm's prefixes for hubs and folders download or read files.
    _known("timm", name.partition(".")[0], timm.list_models())
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise UsageError(
            f"timm has no weights {name!r}; remove the dot and what follows"
        ) from error


def _known(library: str, name: str, names: Iterable[str]) -> str:
    known = list(names)
    if name not in known:
        hint = nearest(name, known, otherwise=f"see the documentation of {library}")
        raise UsageError(f"{library} has no classifier {name!r}; {hint}")
    return name


def with_prefix(name: str, library: str) -> list[str]:
    """Return ``LIBRARY/NAME`` in a list if the library has that classifier, else an empty list.

    >>> with_prefix("resnet18", "torchvision"), with_prefix("resnet18", "no-library")
    (['torchvision/resnet18'], [])
    """
    if library == "torchvision":
        names: Iterable[str] = _torchvision_names()
    elif library == "timm":
        import timm

        names = timm.list_models()
    else:
        return []
    return [f"{library}/{name}"] if name in names else []
