"""Folders of images with one folder per class, within ``train``, ``val`` and ``test`` or not."""

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
    """Your own images in ``train/CLASS/``, optionally ``val/`` and ``test/``, or in ``CLASS/``.

    A split without a folder is a fixed random tenth of every class of the training images. Classes
    are numbered in the order of their sorted names, as in torchvision's ImageFolder. The layout of
    Tiny-ImageNet, with a file for the classes of ``val``, is supported too: its ``val`` is the
    test split, since its ``test`` has no labels.

    Args:
        path: The folder.
        reading: How images are read.

    Raises:
        UsageError: If the images have several sizes and none was chosen.
        InputError: If the folder is missing, has another layout, or contains links that leave it.
    """
    root = Path(os.path.realpath(path))
    if not os.path.isdir(root):
        raise InputError(f"{shown(path)} is not a folder; expected one with images")
    return compose_folder(root.name or "folder", root, reading or Reading())


def compose_folder(name: str, root: Path, reading: Reading) -> Pictures:
    """Make the data source of a folder; see `load_folder`.

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
    """Return the splits other than train that have a folder."""
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
    """List images in one folder whose classes are in a table: file, class, and more, by tabs."""
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
