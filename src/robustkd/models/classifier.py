"""The model type of this package: normalisation of pixels, followed by a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.preprocessing import check_preprocessing, usual_resize
from robustkd.core.types import DataSource, Images, Logits
from robustkd.core.validation import (
    check_count,
    check_names,
    check_text,
    plain_number,
    plain_numbers,
)

_LONGEST_NAME = 1000
_MOST_SHOWN = 60


@dataclass(frozen=True)
class Spec:
    """Specification of a model without its weights.

    Lists, arrays and tensors of numbers are accepted as well, and become tuples.

    Attributes:
        arch: Name of the architecture, e.g. ``wrn-16-2``.
        classes: Number of classes, at least 2.
        image_shape: Channels (1 or 3), height and width in pixels.
        mean: Mean of the training pixels per channel, in [0, 1]; 0.5 if empty.
        std: Standard deviation of the training pixels per channel, above 0; 0.5 if empty.
        class_names: Name of each class in the order of the logits; empty if unknown.
        resize: How an image of another size is brought to ``image_shape``: ``centred-square`` cuts
            out the centred square and resamples it; ``squash`` cuts out the centred rectangle of
            the image's proportions and resamples it. If empty, ``centred-square``, or ``squash`` if
            height and width differ, so that no part of an image is cut off.
        crop: Side of that square as a share of the shorter side of the image, or of that rectangle
            as a share of both sides, in (0, 1].
        interpolation: Filter of Pillow with which it is resampled, such as ``bilinear``.

    Raises:
        UsageError: If a value is out of range or of another type, or the number of means, standard
            deviations or class names does not fit the number of channels or classes.

    Example:
        >>> import robustkd
        >>> robustkd.Spec("wrn-10-1", classes=10, image_shape=(1, 28, 28)).mean
        (0.5,)
    """

    arch: str
    classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    resize: str = ""
    crop: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        self._check_images()
        self._check_files()

    def _check_images(self) -> None:
        check_text(arch=self.arch)
        check_count(least=2, classes=self.classes)
        self._set("classes", int(self.classes))
        self._set("image_shape", _checked_shape(self.image_shape))
        channels = self.image_shape[0]
        for field in ("mean", "std"):
            values = plain_numbers(field, getattr(self, field))
            self._set(field, tuple(map(float, values)) or (0.5,) * channels)
        finite = all(map(math.isfinite, self.mean + self.std))
        if {len(self.mean), len(self.std)} != {channels} or not finite or min(self.std) <= 0:
            raise UsageError(
                f"mean is {self.mean} and std is {self.std}; expected {channels} finite values "
                "each, std above 0"
            )

    def _check_files(self) -> None:
        check_names(class_names=self.class_names)
        names = tuple(self.class_names)
        self._set("class_names", names)
        if names and len(names) != self.classes:
            raise UsageError(f"{len(names)} class names are given for {self.classes} classes")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"class name {twice[:_MOST_SHOWN]!a} is given twice")
        if max(map(len, names), default=0) > _LONGEST_NAME:
            raise UsageError(f"a class name has more than {_LONGEST_NAME} characters")
        resize = usual_resize(self.image_shape) if self.resize == "" else self.resize
        check_preprocessing(resize=resize, crop=self.crop, interpolation=self.interpolation)
        self._set("resize", resize)
        self._set("crop", float(self.crop))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)


def _checked_shape(shape: object) -> tuple[int, int, int]:
    """Return the shape of images as a tuple of Python's own numbers.

    Raises:
        UsageError: If it is no such shape.
    """
    found = shape.tolist() if isinstance(shape, Tensor | np.ndarray) else shape
    sides = [plain_number(side) for side in found] if isinstance(found, list | tuple) else []
    whole = [side for side in sides if type(side) is int and side > 0]
    if len(sides) != 3 or len(whole) != 3 or whole[0] not in (1, 3):
        raise UsageError(f"image shape is {shape}; expected (1 or 3, height, width) in pixels")
    return whole[0], whole[1], whole[2]


class Normalise(nn.Module):
    """Normalise each channel: ``(x - mean) / std``.

    This is the first layer of every model, so that all models take pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Images) -> Float[Tensor, "n channels height width"]:
        """Normalise the images; the shape is kept."""
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A network with its normalisation as the first layer.

    Args:
        spec: Specification of the model.
        network: Network that maps normalised images to logits.

    Attributes:
        taps: Module paths of the stages, if the user has given them; None to find them.
    """

    taps: tuple[str, ...] | None = None

    def __init__(self, spec: Spec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.mean, spec.std)
        self.network = network

    def forward(self, images: Images) -> Logits:
        """Logits of ``images`` (N x C x H x W, float in [0, 1])."""
        logits: Tensor = self.network(self.normalise(images))
        return logits


def check_logits(outputs: object, images: int, classes: int | None, network: str) -> Logits:
    """Return the outputs of a network if they are logits.

    Args:
        outputs: What the network returned.
        images: Number of images that it was given.
        classes: Number of classes; None for any.
        network: What the network is, for the message, such as "the teacher".

    Raises:
        UsageError: If they are not a tensor of N x classes floating-point numbers.
    """
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"{network} returns {type(outputs).__name__}; expected a tensor of logits, N x classes"
        )
    if outputs.ndim != 2 or len(outputs) != images or classes not in (None, outputs.shape[1]):
        raise UsageError(
            f"{network} maps {images} images to a tensor of shape {tuple(outputs.shape)}; expected "
            f"logits of shape ({images}, {classes or 'classes'})"
        )
    if not outputs.is_floating_point():
        raise UsageError(
            f"{network} returns numbers of type {outputs.dtype}; expected logits in floating point"
        )
    return outputs


def spec_for(arch: str, data: DataSource) -> Spec:
    """Describe a model for these images: shape, statistics, class names, and how they are read.

    Args:
        arch: Name of the architecture.
        data: The images; ``crop``, ``resize`` and ``interpolation`` are read from it if it has
            them.

    Raises:
        UsageError: If the data does not describe a classifier, such as one class name twice.
    """
    mean, std = pixel_statistics(data)
    return Spec(
        arch,
        len(data.classes),
        data.image_shape,
        mean,
        std,
        class_names=tuple(data.classes),
        resize=str(getattr(data, "resize", Spec.resize)),
        crop=float(getattr(data, "crop", 1.0)),
        interpolation=str(getattr(data, "interpolation", Spec.interpolation)),
    )


def pixel_statistics(data: DataSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the training images, in [0, 1]."""
    total = squares = torch.zeros(data.image_shape[0], dtype=torch.float64)
    count = 0
    # Batches of large images are smaller, which limits memory to some hundred MiB.
    at_once = max(1, min(1024, (1 << 22) // math.prod(data.image_shape)))
    for batch in data.batches("train", batch_size=at_once):
        pixels = batch.images.double()
        total = total + pixels.sum(dim=(0, 2, 3))
        squares = squares + pixels.square().sum(dim=(0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return (
        tuple(round(v, 6) for v in mean.tolist()),
        tuple(round(max(v, 1e-3), 6) for v in std.tolist()),
    )
