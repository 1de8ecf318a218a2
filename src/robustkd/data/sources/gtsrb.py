"""GTSRB: 51,839 photographs of German traffic signs.

Johannes Stallkamp, Marc Schlipsing, Jan Salmen and Christian Igel, 2012, "Man vs. computer:
Benchmarking machine learning algorithms for traffic sign recognition", Neural Networks 32,
doi 10.1016/j.neunet.2012.02.016.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from robustkd.data.augment import CropFlip
from robustkd.data.images.compose import compose
from robustkd.data.images.listing import Folder, Listing, list_files
from robustkd.data.images.options import Reading
from robustkd.data.images.scan import check_inside
from robustkd.data.images.streamed import Pictures
from robustkd.data.sources.download import Official

_SIZE = 32
_CLASSES = 43


def load_gtsrb(root: Path | None = None, reading: Reading | None = None) -> Pictures:
    """GTSRB: traffic signs of 43 classes, of 3 x 32 x 32 unless a size is chosen.

    The test split is the official one; validation is a fixed tenth of every class of the official
    training images. Classes are named by their official numbers. Images are never mirrored in
    training, because a mirrored sign can be another one.

    Args:
        root: Folder that holds ``gtsrb``; None searches the folder that the environment variable
            ROBUSTKD_DATA names, then ``~/.cache/robustkd``, then downloads.
        reading: How images are read.

    Raises:
        InputError: If the files are missing or damaged.
    """
    from torchvision.datasets import GTSRB

    def fetch(cache: Path) -> None:
        for split in ("train", "test"):
            GTSRB(str(cache), split=split, download=True)

    marks = ("GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv")
    official = Official("GTSRB", "gtsrb", marks, fetch)
    place = official.locate(root)
    root = Path(os.path.realpath(place / "gtsrb"))
    official.check_marks(root)
    with official.reading(place):
        # A private table of the reader, which has no public one.
        train, test = (
            listed(place / "gtsrb", GTSRB(str(place), split=split)._samples, real=root)
            for split in ("train", "test")
        )
    reading = replace(reading or Reading(), flip=False)
    reading.check_unused("gtsrb", ("image_size", "channels", "crop", "flip", "streaming", "split"))
    size = reading.image_size or _SIZE
    return compose(
        "gtsrb",
        [f"{label:05d}" for label in range(_CLASSES)],
        train,
        {"test": test},
        replace(reading, image_size=size),
        augmentation=CropFlip(size // 8, flip=False),
    )


def listed(root: Path, samples: Sequence[tuple[str, int]], *, real: Path) -> Listing:
    """List the files that a reader of torchvision has found below ``root``, in its order.

    Args:
        root: The folder as given to the reader.
        samples: Path and class of each file.
        real: The same folder, with no link in its path.

    Raises:
        ValueError: If a file is not below ``root``.
        InputError: If there is a link that leaves it.
    """
    paths = [(Path(path).relative_to(root), label) for path, label in samples]
    if any(".." in path.parts for path, _ in paths):
        raise ValueError("a file of the list is outside of the folder")
    groups = groupby(paths, key=lambda sample: sample[0].parent)
    for folder in sorted({path.parent.as_posix() for path, _ in paths}):
        check_inside(real, folder)
    return list_files(
        real,
        (_folder(parent, list(members)) for parent, members in groups),
        classes=1 + max((label for _, label in paths), default=0),
    )


def _folder(parent: Path, members: Sequence[tuple[Path, int]]) -> Folder:
    return Folder(parent.as_posix(), [p.name for p, _ in members], [label for _, label in members])
