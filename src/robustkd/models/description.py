"""Descriptions in the files of models: the specification, and whether it fits the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from robustkd.core.errors import InputError, UsageError, first_line, quoted
from robustkd.core.names import composed
from robustkd.models.classifier import Spec


def described_spec(description: Mapping[str, object], path: Path, arch: str | None = None) -> Spec:
    """Read the specification of a model from a description.

    Args:
        description: Description from :func:`robustkd.models.model_file.read_safetensors`.
        path: The file, for messages.
        arch: Architecture that the description must have; None to accept any.

    Raises:
        InputError: If the description is damaged or has another architecture.
    """
    said = description.get("spec")
    if said is None and "trigger" in description:
        raise InputError(f"{path} is a trigger, which robustkd attack wrote; give a model's file")
    if said is None and "normalisation" in description:
        raise InputError(
            f"{path} is a state dict for torchvision or timm, which robustkd export wrote; give "
            "the student.safetensors that was exported, or the folder of its run"
        )
    try:
        if not isinstance(said, dict):
            raise TypeError("no spec")
        named = str(said["arch"])
        if arch is not None and named != arch:
            raise InputError(
                f"{path} is a model of architecture {quoted(named)}, not {str(arch)!r}: "
                "name the one that it was trained with"
            )
        channels, height, width = said["image_shape"]
        return Spec(
            arch=arch or named,
            classes=int(said["classes"]),
            image_shape=(int(channels), int(height), int(width)),
            mean=tuple(float(v) for v in said["mean"]),
            std=tuple(float(v) for v in said["std"]),
            **_described_files(said),
        )
    except KeyError as error:
        raise InputError(f"{path} has a damaged model description: no {error}") from error
    except (TypeError, ValueError, OverflowError, UsageError) as error:
        raise InputError(f"{path} has a damaged model description: {first_line(error)}") from error


class _Files(TypedDict, total=False):
    class_names: tuple[str, ...]
    crop: float
    resize: str
    interpolation: str


def _described_files(said: Mapping[str, Any]) -> _Files:
    """Return class names and image settings of a description; older files have none of them."""
    found = _Files()
    if "class_names" in said:
        names = said["class_names"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError("class_names is not a list of texts")
        found["class_names"] = tuple(names)
    if "crop" in said:
        found["crop"] = float(said["crop"])
    for field in ("resize", "interpolation"):
        if field in said and not isinstance(said[field], str):
            raise TypeError(f"{field} is of type {type(said[field]).__name__}; expected a text")
    if "resize" in said:
        found["resize"] = said["resize"]
    if "interpolation" in said:
        found["interpolation"] = said["interpolation"]
    return found


def check_fits(
    spec: Spec,
    path: Path,
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    names: tuple[str, ...] = (),
) -> None:
    """Check that a model fits the data.

    Args:
        spec: Specification of the model.
        path: File of the model, for messages.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of the data.
        names: Names of its classes, in the order of the labels; empty to leave them unchecked.

    Raises:
        InputError: If the number or the names of the classes, or the shape of the images differ.
    """
    if spec.classes != classes:
        raise InputError(
            f"{path} is a model of {spec.classes} classes; the data has {classes}: "
            "use the data that it was trained for"
        )
    if spec.image_shape != image_shape:
        raise InputError(
            f"{path} expects images of shape {spec.image_shape}; the data, as it is read, has "
            f"{image_shape}: use the data that it was trained for, without another image size or "
            "number of channels"
        )
    for label, (own, other) in enumerate(zip(spec.class_names, names, strict=False)):
        if composed(own) != composed(other):
            raise InputError(
                f"{path} calls class {label} {quoted(own)}; the data calls it {quoted(other)}: "
                "use the data that it was trained for, with its classes in that order"
            )
