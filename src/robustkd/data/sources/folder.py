"""Folders of images with one folder per class, within ``train``, ``val`` and ``test`` or not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from robustkd.core.errors import InputError
from robustkd.core.names import as_found
from robustkd.core.types import Split
from robustkd.data.images.class_names import ClassNames, read_class_names
from robustkd.data.images.compose import compose
from robustkd.data.images.holdout import HeldOut
from robustkd.data.images.listing import Encoded, Folder, Listing, list_files, shown
from robustkd.data.images.options import Reading
from robustkd.data.images.scan import (
    check_same_classes,
    class_folders,
    folder_names,
    hidden_folders_with_images,
    holds_images,
    image_names,
    read_lines,
    scan,
)
from robustkd.data.images.streamed import Pictures

_SPELLINGS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of the folders of splits, in lower case."""
_ANNOTATIONS = "val/val_annotations.txt"
_ANNOTATED = "val/images"
_FEWEST, _SHOWN, _DEEPEST = 2, 3, 5
_LOOSE = "images beside the class folders"
_HIDDEN = "folders of images with a dot before the name"
"""Kinds of what belongs to no class, where files and folders that are left out are counted."""


def load_folder(path: str | Path, reading: Reading | None = None) -> Pictures:
    """Your own images in ``train/CLASS/``, optionally ``val/`` and ``test/``, or in ``CLASS/``.

    The names of splits may be spelled in other usual ways, such as ``Training``, ``valid``, ``dev``
    or ``Testing``.

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
    path = Path(path)
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
    found = class_folders(root)
    skipped: Counter[str] = Counter()
    splits = _splits(root, found)
    top = splits.get("train", "")
    nested = class_folders(root, top) if top else ()
    if not nested and found and all(name.lower() in _SPELLINGS for name in found):
        raise InputError(
            f"{shown(root)} has {' and '.join(found)} but no class folders in {top or 'train'}; "
            f"expected {top or 'train'}/CLASS/ with images"
        )
    if not found:
        raise InputError(
            f"{shown(root)} has no folders; expected train/CLASS/ or CLASS/ with images"
        )
    if nested:
        others = [name for name in found if name not in splits.values()]
        _check_others(root, splits, others, nested, skipped)
    part, classes = (top, nested) if nested else ("", found)
    if not nested and reading.classes is None:
        _check_level(root, part, classes)
    named = ClassNames(classes)
    if isinstance(reading.classes, str | Path):
        named = read_class_names(Path(reading.classes), classes)
    elif reading.classes is not None:
        own = as_found(reading.classes, classes)
        advice = ", or use the data that the model was trained for"
        it = shown(root / part)
        check_same_classes(classes, own, it=it, other="the model", advice=advice)
        named = ClassNames(own)
    classes = named.names
    train = scan(root, part, classes, skipped=skipped)
    for place in {"", part}:
        _count_loose(root, place, skipped)
    given = _given(root, splits, classes, skipped) if nested else {}
    made = compose(shown(name), classes, train, given, reading, skipped=skipped)
    return replace(made, outputs=named.outputs, outputs_of=named.of)


def _splits(root: Path, found: Sequence[str]) -> dict[Split, str]:
    """Return the folder of each split.

    Raises:
        InputError: If two folders are named for the same split.
    """
    splits: dict[Split, str] = {}
    for name in found:
        split = _SPELLINGS.get(name.lower())
        if split is None:
            continue
        if split in splits:
            raise InputError(
                f"{shown(root / name)} is a second folder for {split}, besides {splits[split]}; "
                "keep one of them"
            )
        splits[split] = name
    return splits


def _check_level(root: Path, part: str, classes: Sequence[str]) -> None:
    """Refuse a folder above that of the class folders.

    Raises:
        InputError: If no class folder has images of its own, and all have the same folders.
    """
    common: tuple[str, ...] | None = None
    for name in classes:
        inner = _inner_folders(root, f"{part}/{name}" if part else name)
        if len(inner) < _FEWEST or common not in (None, inner):
            return
        common = inner
    if common is not None and len(classes) >= _FEWEST:
        few = [shown(name) for name in classes[:_SHOWN]]
        raise InputError(
            f"{shown(root / part)} looks one level too high: {', '.join(few)} have no images of "
            f"their own, but the same folders {', '.join(map(shown, common[:_SHOWN]))}; expected "
            "train/CLASS/ or CLASS/ with images: give a folder in it, rename its folders to train "
            "and test, or name the classes with --class-names if it is right"
        )


def _inner_folders(root: Path, place: str) -> tuple[str, ...]:
    """Return the folders in a folder without images, or in the only folder in it, if it has one."""
    for _ in range(_DEEPEST):
        if image_names(root, place):
            return ()
        inner = folder_names(root, place)
        if len(inner) != 1:
            return inner
        place = f"{place}/{inner[0]}"
    return ()


def _check_others(
    root: Path,
    splits: Mapping[Split, str],
    others: Sequence[str],
    classes: Sequence[str],
    skipped: Counter[str],
) -> None:
    """Count folders other than those of the splits, and refuse those with images at any depth.

    Such images could be those of classes, or of a split whose name is not known.

    Raises:
        InputError: If such a folder holds images.
    """
    top = splits["train"]
    free = [name for name in ("val", "test") if _SPELLINGS[name] not in splits]
    for name in others:
        if holds_images(root, name):
            is_split = not set(classes).isdisjoint(folder_names(root, name))
            rename = f", or rename {shown(name)} to {' or '.join(free)} if it is that split"
            raise InputError(
                f"{shown(root)} has class folders in {top}, and images in {shown(name)} next to "
                f"it; expected either {top}/CLASS/ or CLASS/ with images: move one of them away"
                f"{rename if is_split and free else ''}"
            )
        skipped["folders"] += 1


def _count_loose(root: Path, part: str, skipped: Counter[str]) -> None:
    """Count the images directly in a folder of class folders, and hidden folders of images."""
    if count := len(image_names(root, part)):
        skipped[_LOOSE] += count
    if count := hidden_folders_with_images(root, part):
        skipped[_HIDDEN] += count


def _given(
    root: Path, splits: Mapping[Split, str], classes: Sequence[str], skipped: Counter[str]
) -> dict[HeldOut, Encoded]:
    """Return the splits other than train that have a folder."""
    if splits.get("validation") == "val" and os.path.lexists(root / _ANNOTATIONS):
        return {"test": _annotated(root, classes)}
    given: dict[HeldOut, Encoded] = {}
    held_out: tuple[HeldOut, ...] = get_args(HeldOut)
    for split in held_out:
        if split not in splits:
            continue
        part = splits[split]
        own = class_folders(root, part)
        advice = f", or move {part} out of the folder"
        check_same_classes(
            as_found(own, classes),
            classes,
            it=shown(root / part),
            other=splits["train"],
            advice=advice,
        )
        given[split] = scan(root, part, as_found(classes, own), skipped=skipped)
        _count_loose(root, part, skipped)
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
            "the folders in train; correct it"
        )
    return list_files(root, [Folder(_ANNOTATED, names, labels)], classes=len(classes))
