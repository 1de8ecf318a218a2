"""Flowers-102: 8,189 photographs of flowers.

Maria-Elena Nilsback and Andrew Zisserman, 2008, "Automated flower classification over a large
number of classes", ICVGIP, doi 10.1109/ICVGIP.2008.47.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from robustkd.data.images.compose import compose
from robustkd.data.images.options import Reading
from robustkd.data.images.streamed import Pictures
from robustkd.data.sources.download import Official
from robustkd.data.sources.gtsrb import listed

_SIZE = 224
_FOLDER = "flowers-102"


def load_flowers102(root: Path | None = None, reading: Reading | None = None) -> Pictures:
    """Flowers-102: train 1,020 / validation 1,020 / test 6,149, of 3 x 224 x 224 unless chosen.

    All splits are the official ones.

    Args:
        root: Folder that holds ``flowers-102``; None searches the folder that the environment
            variable ROBUSTKD_DATA names, then ``~/.cache/robustkd``, then downloads.
        reading: How images are read.

    Raises:
        InputError: If the files are missing or damaged.
    """
    from torchvision.datasets import Flowers102

    official = Official(
        "Flowers-102",
        _FOLDER,
        ("jpg", "imagelabels.mat", "setid.mat"),
        lambda cache: Flowers102(str(cache), download=True),
    )
    place = official.locate(root)
    root = Path(os.path.realpath(place / _FOLDER))
    official.check_marks(root)
    with official.reading(place):
        # Private tables of the reader, which has no public ones.
        readers = [Flowers102(str(place), split=split) for split in ("train", "val", "test")]
        train, validation, test = (
            listed(
                place / _FOLDER,
                list(zip(map(str, r._image_files), r._labels, strict=True)),
                real=root,
            )
            for r in readers
        )
    reading = reading or Reading()
    reading.check_unused("flowers-102", ("image_size", "channels", "crop", "flip", "streaming"))
    return compose(
        "flowers-102",
        Flowers102.classes,
        train,
        {"validation": validation, "test": test},
        replace(reading, image_size=reading.image_size or _SIZE),
    )
