"""Images of a folder whose classes are not known, or are the names of its folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robustkd.core.errors import InputError, quoted
from robustkd.core.names import composed
from robustkd.core.trees import Tree
from robustkd.core.types import UNLABELLED, Labels
from robustkd.data.images.decode import UndecodableError, decode
from robustkd.data.images.listing import shown
from robustkd.data.images.options import Reading
from robustkd.data.images.scan import folder_names, image_names, images_below

_MOST = 100_000


class FolderImages(NamedTuple):
    """Images of a folder.

    Attributes:
        images: Bytes, n x channels x size x size, with n at least 1.
        labels: Class of each image; -1 for an image that is in no folder of a class.
        damaged: Number of files that could not be decoded.
    """

    images: Tensor
    labels: Labels
    damaged: int


def read_images(
    folder: Path,
    *,
    size: int,
    reading: Reading,
    classes: Sequence[str] = (),
    without: str = "",
    labelled: bool = False,
    skipped: Counter[str] | None = None,
) -> FolderImages:
    """Decode all images of a folder and of the folders in it, of any depth.

    Args:
        folder: Folder with images, or with folders of images.
        size: Height and width of the result.
        reading: How images are read; its ``image_size`` is not used.
        classes: Names of the classes. If the name of a folder in it is one of them, those of all
            folders in it have to be.
        without: Name of the class whose folder is left out. Names in Unicode's composed and
            decomposed forms are equal.
        labelled: If True, every image has to be in a folder in it that is named by a class.
        skipped: Gets the number of files that are not images in a known format, by extension.

    Raises:
        InputError: If there is no such folder, it has no readable image or too many, a folder in it
            is not named by a class and another one is, the folder of the class that is left out is
            a deeper one, or an image that needs a class has none.
    """
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is not a folder; expected one with triggered images")
    root = Path(os.path.realpath(folder))
    parts = folder_names(root)
    _check_classes(parts, classes, folder)
    names = image_names(root, "", skipped)
    for part in parts:
        if composed(part) != composed(without):
            names += images_below(root, part, skipped)
    _check_depth(names, without, folder)
    known = {composed(name): number for number, name in enumerate(classes)}
    if labelled:
        _check_labelled(names, known, folder)
    if len(names) > _MOST:
        raise InputError(f"{shown(folder)} has {len(names)} images; expected at most {_MOST}")
    tree, found, labels, damaged = Tree(root), list[Tensor](), list[int](), 0
    for name in names:
        try:
            with os.fdopen(tree.open(name), "rb") as stream:
                pixels = decode(
                    stream,
                    size=size,
                    channels=reading.channels,
                    crop=float(reading.crop),
                    resize=reading.resize,
                    interpolation=reading.interpolation,
                )
        except (OSError, UndecodableError):
            damaged += 1
            continue
        found.append(torch.from_numpy(pixels.copy()))
        labels.append(_label(name, known))
    if not names and composed(without) in map(composed, parts):
        raise InputError(
            f"{shown(folder)} has no images of other classes than {quoted(without)}, the target, "
            "whose images are left out; add some"
        )
    if not found:
        raise InputError(f"{shown(folder)} has no image that can be read; expected at least one")
    return FolderImages(torch.stack(found), torch.tensor(labels), damaged)


def _label(name: str, known: Mapping[str, int]) -> int:
    """Return the class whose folder an image is in."""
    top, inside, _ = name.partition("/")
    return known.get(composed(top), UNLABELLED) if inside else UNLABELLED


def _check_labelled(names: Sequence[str], known: Mapping[str, int], folder: Path) -> None:
    """Refuse images that are in no folder of a class."""
    for name in names:
        if _label(name, known) == UNLABELLED:
            raise InputError(
                f"{shown(folder)} has an image {quoted(name)} that is in no folder of a class; the "
                "next class of an image needs its own: expected one folder per class, with its name"
            )


def _check_classes(parts: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """Refuse folders of which some are named by classes and others are not."""
    known = {composed(name) for name in classes}
    others = [part for part in parts if composed(part) not in known]
    if others and len(others) < len(parts):
        raise InputError(
            f"{shown(folder)} has a folder {quoted(others[0])}, which is no class of the model, "
            "next to folders of classes: rename it, or remove it"
        )


def _check_depth(names: Sequence[str], without: str, folder: Path) -> None:
    """Refuse images in a deeper folder that is named by the class that is to be left out."""
    for name in names:
        above = name.split("/")[:-1]
        if without and any(composed(part) == composed(without) for part in above):
            raise InputError(
                f"{shown(folder)} has images of the class {quoted(without)} in "
                f"{quoted('/'.join(above))}; give the folder that holds the folders of the classes"
            )
