"""Last step of every loader of encoded images: splits that are missing are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from robustkd.core.types import Split
from robustkd.data.augment import Augmentation
from robustkd.data.images.holdout import HeldOut, cut, read_split
from robustkd.data.images.listing import Encoded
from robustkd.data.images.loader import Part, whole
from robustkd.data.images.options import Reading, guess_size
from robustkd.data.images.streamed import Pictures


def compose(
    name: str,
    classes: Sequence[str],
    train: Encoded,
    given: Mapping[HeldOut, Encoded],
    reading: Reading,
    *,
    augmentation: Augmentation | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Pictures:
    """Make a data source from training images and the splits that a data set has.

    Args:
        name: Short name of the source.
        classes: Names of the classes.
        train: Training images, from which missing splits are held out.
        given: Other splits of the data set.
        reading: How images are read.
        augmentation: Augmentation; None chooses one for the size of the images.
        skipped: Number of files and folders that were left out, by kind.

    Raises:
        UsageError: If the image size is not given and cannot be determined.
        InputError: If a class has too few images, or ``reading.split`` does not fit.
    """
    size = reading.image_size or guess_size(train, given.items(), name)
    parts: dict[Split, Part] = {split: whole(files) for split, files in given.items()}
    missing = [split for split in get_args(HeldOut) if split not in given]
    made = None
    if reading.split is not None:
        made = read_split(Path(reading.split), train, missing)
    elif missing:
        made = cut(train, missing, classes, f"{name} train")
    if made is None:
        parts["train"] = whole(train)
    else:
        parts["train"] = Part(train, made.train)
        parts |= {split: Part(train, rows) for split, rows in made.held_out.items()}
    return Pictures(
        name=name,
        classes=tuple(classes),
        parts=parts,
        image_size=size,
        reading=reading,
        augmentation=augmentation or reading.augmentation(size),
        made=made,
        skipped=dict(skipped or {}),
    )
