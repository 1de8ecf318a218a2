"""Images of a folder whose classes are not known, or are the names of its folders."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.core.trees import Tree
from robustkd.data.images.decode import UndecodableError, decode
from robustkd.data.images.listing import shown
from robustkd.data.images.options import Reading
from robustkd.data.images.scan import folder_names, image_names

_MOST = 100_000


def read_images(
    folder: Path, *, size: int, reading: Reading, without: str = ""
) -> tuple[Tensor, int]:
    """Decode all images of a folder, or of the folders in it.

    Args:
        folder: Folder with images, or with folders of images.
        size: Height and width of the result.
        reading: How images are read; its ``image_size`` is not used.
        without: Name of a folder in it that is left out.

    Returns:
        Bytes, n x channels x size x size, with n at least 1; and the number of files that could not
        be decoded.

    Raises:
        InputError: If there is no such folder, it has no readable image, or too many.
    """
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is not a folder; expected one with triggered images")
    root = Path(os.path.realpath(folder))
    names = list(image_names(root, ""))
    for part in folder_names(root):
        if part != without:
            names += [f"{part}/{name}" for name in image_names(root, part)]
    if len(names) > _MOST:
        raise InputError(f"{shown(folder)} has {len(names)} images; expected at most {_MOST}")
    tree, found, damaged = Tree(root), [], 0
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
    if not found:
        raise InputError(f"{shown(folder)} has no image that can be read; expected at least one")
    return torch.stack(found), damaged
