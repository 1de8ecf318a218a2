"""Opening the teacher's architecture and the data, with the preprocessing of the teacher."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from robustkd.core.devices import default_device
from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import DataSource
from robustkd.data import PICTURES, SOURCES, Pictures, Reading, open_source
from robustkd.data.images.listing import shown
from robustkd.data.images.options import UnknownSizeError
from robustkd.models import Spec, pixel_statistics
from robustkd.models.description import described_spec
from robustkd.models.model_file import read_description
from robustkd.teacher.facts import Teacher, TeacherFile
from robustkd.teacher.options import shown_key
from robustkd.teacher.own_files import OWN_FILE
from robustkd.teacher.preprocessing import (
    BESIDE,
    Stated,
    published,
    stated_architecture,
    stated_beside,
    transformers_advice,
    weights_in,
)
from robustkd.teacher.read import read_teacher
from robustkd.teacher.untrusted.quarantine import check_format
from robustkd.training.inference import accuracy_on

_FORM = ("image_size", "crop", "resize", "interpolation")


def architecture(teacher: Path, arch: str | None, *, flag: str = "--arch") -> str:
    """Return the architecture of a teacher: the one that the user names, or that of its files.

    Args:
        teacher: The teacher's file, or a folder of the Hugging Face Hub or of an attack.
        arch: Architecture that the user names; None to take it from the description in a file of
            this package, or from ``config.json``.
        flag: Flag that names it, for messages.

    Raises:
        UsageError: If the user names none, and there is neither a description nor a
            ``config.json`` of timm.
        InputError: If the description or ``config.json`` is damaged, ``config.json`` names no
            classifier of timm, a folder has no weights, or there is no such file.
    """
    if arch is not None:
        return arch
    weights = weights_in(teacher)
    if not os.path.lexists(weights):
        raise InputError(f"{teacher} does not exist; expected the teacher's file or folder")
    description = read_description(weights)
    if description is not None:
        return described_spec(description, weights).arch
    stated = stated_architecture(weights, flag=flag)
    if not stated:
        check_format(weights)
        if advice := transformers_advice(weights):
            raise UsageError(f"{flag} is missing; {advice.replace('--arch', flag)}")
        raise UsageError(
            f"{flag} is missing; expected the architecture of the teacher, which no config.json "
            "next to its weights states: see robustkd list"
        )
    return stated


def open_as_taught(
    teacher: Path,
    arch: str,
    data: str,
    root: Path | None,
    reading: Reading,
    given: Collection[str],
) -> DataSource:
    """Open the data, and read its images as the teacher's images were read, if that is stated.

    What the user gives has precedence, then the description in a file of this package, then the
    files next to the teacher's weights. What torchvision or timm publish for the architecture is
    used if the input size that the user gives is the published one, or if no size is given and the
    images have no common small size. Images of data sets in arrays are used as they are.

    Args:
        teacher: The teacher's file, or a folder of the Hugging Face Hub.
        arch: Architecture of the teacher.
        data: Name or folder of the data.
        root: Folder of the files of a named data set; None for the usual places.
        reading: How images are read.
        given: Names of its fields that the user gives.

    Raises:
        UsageError: If a name is unknown, or the image size is unknown.
        InputError: If the data, the description, or a file next to the weights is damaged.
    """
    if data in SOURCES:
        return open_source(data, root=root, reading=reading)
    weights = weights_in(teacher)
    beside = _described(weights, arch) or stated_beside(weights)
    if beside is not None:
        reading = _filled(reading, beside, given)
    usual = None if beside is not None or data in PICTURES else published(arch)
    if usual is None or usual.image_size is None:
        return open_source(data, root=root, reading=reading)
    if reading.image_size == usual.image_size:
        return open_source(data, root=root, reading=_filled(reading, usual, given))
    try:
        return open_source(data, root=root, reading=reading)
    except UnknownSizeError:
        return open_source(data, root=root, reading=_filled(reading, usual, given))


def _described(weights: Path, arch: str) -> Stated | None:
    """Return how images are read for a model that this package saved; None for other files."""
    description = read_description(weights)
    if description is None:
        return None
    spec = described_spec(description, weights, arch)
    _, height, width = spec.image_shape
    size = height if height == width else None
    return Stated(OWN_FILE, "", size, spec.crop, spec.resize, spec.interpolation)


def open_teacher(
    teacher: Path,
    arch: str | None,
    data: str,
    root: Path | None,
    reading: Reading,
    given: Collection[str],
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    teacher_key: str | None = None,
    allow_weak_sandbox: bool = False,
) -> tuple[Teacher, DataSource]:
    """Read a teacher's file, and open the data with its preprocessing.

    Arguments and errors are those of :func:`architecture`, :func:`open_as_taught` and
    :func:`robustkd.teacher.read.read_teacher`.
    """
    known = architecture(teacher, arch)
    clean = open_as_taught(teacher, known, data, root, reading, given)
    read = teacher_for(
        teacher,
        known,
        clean,
        mean=mean,
        std=std,
        teacher_key=teacher_key,
        allow_weak_sandbox=allow_weak_sandbox,
    )
    return read, clean


def teacher_for(
    teacher: Path,
    arch: str,
    clean: DataSource,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    teacher_key: str | None = None,
    allow_weak_sandbox: bool = False,
    outputs: tuple[int, ...] = (),
) -> Teacher:
    """Read a teacher's file for data that are open.

    ``outputs`` has precedence over the outputs that the data state. Other arguments and errors are
    those of :func:`robustkd.teacher.read.read_teacher`.
    """
    return read_teacher(
        teacher,
        arch=arch,
        classes=len(clean.classes),
        image_shape=clean.image_shape,
        mean=mean,
        std=std,
        teacher_key=teacher_key,
        allow_weak_sandbox=allow_weak_sandbox,
        outputs=outputs or getattr(clean, "outputs", ()),
        outputs_of=None if outputs else getattr(clean, "outputs_of", None),
        statistics=lambda: pixel_statistics(clean),
        judge=lambda model: accuracy_on(model.to(default_device()), clean, "validation").value,
    )


def _filled(reading: Reading, stated: Stated, given: Collection[str]) -> Reading:
    """Return the options with what is stated, except for what the user gives.

    The origin depends on the values alone, not on who gave them. A resumed run, whose flags state
    all values, thus has the origin of the uninterrupted run.
    """
    values = {name: getattr(stated, name) for name in _FORM}
    known = {name: value for name, value in values.items() if value is not None}
    filled = replace(reading, **{name: known[name] for name in known if name not in given})
    own = [name.replace("_", " ") for name in known if getattr(filled, name) != known[name]]
    said = f"{stated.origin}, except for {' and '.join(own)}" if own else stated.origin
    return replace(filled, origin=said if len(own) < len(known) else "")


def form(clean: DataSource) -> dict[str, object]:
    """Return how the images of a folder are read, as JSON values; empty for arrays."""
    if not isinstance(clean, Pictures):
        return {}
    return {
        "image_size": clean.image_size,
        "crop": clean.crop,
        "resize": clean.resize,
        "interpolation": clean.interpolation,
        "taken_from": clean.reading.origin or "flags and defaults",
    }


def form_flags(clean: DataSource) -> dict[str, object]:
    """Return the flags that read images in the stated way; empty if nothing is stated."""
    if not isinstance(clean, Pictures) or not clean.reading.origin:
        return {}
    return {name: getattr(clean, name) for name in _FORM}


def file_line(file: TeacherFile) -> str:
    """Return a part of a line that describes a file of weights, and which of them were matched."""
    order = " by order and shape, since their names differ" if file.by_order else ""
    chosen = ""
    if file.candidates:
        chosen = f"; chosen: {shown_key(file.key)} of {', '.join(file.candidates)}"
    return (
        f"{shown(file.name)}, {file.format}, {file.bytes:,} bytes, sha256 {file.sha256[:12]}; "
        f"{file.matched} tensors matched{order}{chosen}"
    )


def unused(file: TeacherFile) -> str:
    """Return the end of a line that names what is not used of a file; empty if all is."""
    return f"; not used: {', '.join(file.ignored)}" if file.ignored else ""


def form_line(clean: DataSource, spec: Spec, normalisation: str) -> str:
    """Return one line that says how the images are read; empty if no file or library states it.

    The user sees it before the training.

    Args:
        clean: The data.
        spec: Specification of the teacher.
        normalisation: Where its mean and standard deviation come from.
    """
    parts = []
    if isinstance(clean, Pictures) and clean.reading.origin:
        of = "both sides" if clean.resize == "squash" else "the shorter side"
        size = clean.image_size
        parts.append(
            f"{size} x {size} pixels from {clean.crop:.1%} of {of}, {clean.interpolation} "
            f"({clean.reading.origin})"
        )
    if parts or normalisation.endswith(BESIDE):
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (spec.mean, spec.std))
        parts.append(f"mean {mean}, std {std} ({normalisation})")
    return f"images: {'; '.join(parts)}" if parts else ""
