"""Folders of images: one folder a class, within ``train``, ``val`` and ``test`` or directly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.data.images.compose import compose
from robustkd.data.images.holdout import HeldOut
from robustkd.data.images.listing import Encoded, Folder, Listing, list_files, shown
from robustkd.data.images.options import Reading
from robustkd.data.images.scan import (
    check_same_classes,
    folder_names,
    image_names,
    read_class_names,
    read_lines,
    scan,
)
from robustkd.data.images.streamed import Pictures

_TRAIN = "train"
_SPELLINGS: Mapping[str, HeldOut] = {
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_ANNOTATIONS = "val/val_annotations.txt"
_ANNOTATED = "val/images"


def load_folder(path: Path, reading: Reading | None = None) -> Pictures:
    """Images of your own: ``train/CLASS/``, with ``val/`` and ``test/`` or without, or ``CLASS/``.

    A split that has no folder is a fixed random tenth of every class of the training images. The
    classes are numbered by their sorted names, as torchvision's ImageFolder does. Folders like
    Tiny-ImageNet's, where a file tells the classes of ``val``, are known too: its ``val`` is our
    test split, since its ``test`` has no labels.

    Args:
        path: The folder.
        reading: How images are read.

    Raises:
        UsageError: The images have several sizes and none was chosen.
        InputError: The folder is missing, or not of this form, or holds what leads out of it.
    """
    root = Path(os.path.realpath(path))
    if not os.path.isdir(root):
        raise InputError(f"{shown(path)} is not a folder; expected one with images")
    return compose_folder(root.name or "folder", root, reading or Reading())


def compose_folder(name: str, root: Path, reading: Reading) -> Pictures:
    """The source in a folder; see `load_folder`.

    Args:
        name: Short name of the source.
        root: The folder, with no link in its path.
        reading: How images are read.
    """
    found = folder_names(root)
    nested = folder_names(root, _TRAIN) if _TRAIN in found else ()
    if not nested and found and set(found) <= {_TRAIN, *_SPELLINGS}:
        raise InputError(
            f"{shown(root)} has {' and '.join(found)} but no class folders in {_TRAIN}; expected "
            f"{_TRAIN}/CLASS/ with images"
        )
    if not found:
        raise InputError(
            f"{shown(root)} has no folders; expected {_TRAIN}/CLASS/ or CLASS/ with images"
        )
    part, classes = (_TRAIN, nested) if nested else ("", found)
    if isinstance(reading.classes, tuple):
        check_same_classes(reading.classes, classes, it="the model", other="the folder", advice="")
        classes = reading.classes
    elif reading.classes is not None:
        classes = read_class_names(reading.classes, classes)
    train = scan(root, part, classes)
    return compose(
        shown(name), classes, train, _given(root, found, classes) if nested else {}, reading
    )


def _given(root: Path, found: Sequence[str], classes: Sequence[str]) -> dict[HeldOut, Encoded]:
    """The splits besides train that have folders of their own."""
    if "val" in found and os.path.lexists(root / _ANNOTATIONS):
        return {"test": _annotated(root, classes)}
    given: dict[HeldOut, Encoded] = {}
    for part in (name for name in found if name in _SPELLINGS):
        where = shown(root / part)
        own = folder_names(root, part)
        advice = f", or rename {part} to leave it out"
        check_same_classes(own, classes, it=where, other=_TRAIN, advice=advice)
        split = _SPELLINGS[part]
        if split in given:
            raise InputError(f"{where} is a second folder for {split}; keep one of them")
        given[split] = scan(root, part, classes)
    return given


def _annotated(root: Path, classes: Sequence[str]) -> Listing:
    """Images in one folder whose classes stand in a table: file, class, and more, by tabs."""
    path = root / _ANNOTATIONS
    number = {name: label for label, name in enumerate(classes)}
    class_of = dict(
        line.split("\t")[:2] for line in read_lines(path, links=False) if line.count("\t")
    )
    names = image_names(root, _ANNOTATED)
    labels = [number.get(class_of.get(name, ""), -1) for name in names]
    if -1 in labels:
        name = names[labels.index(-1)]
        raise InputError(
            f"{shown(path)} gives {name!r} the class {class_of.get(name)!r}, expected one of "
            f"the folders in {_TRAIN}; correct it"
        )
    return list_files(root, [Folder(_ANNOTATED, names, labels)], classes=len(classes))
