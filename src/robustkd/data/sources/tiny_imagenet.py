"""Tiny-ImageNet: 110,000 labelled photographs of 200 classes, 64x64.

Ya Le and Xuan Yang, 2015, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from robustkd.data.images.options import Reading
from robustkd.data.images.streamed import Pictures
from robustkd.data.sources.download import Official
from robustkd.data.sources.folder import compose_folder

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_SIZE = 64


def load_tiny_imagenet(root: Path | None = None, reading: Reading | None = None) -> Pictures:
    """Tiny-ImageNet: train 90,000 / validation 10,000 / test 10,000 of 3 x 64 x 64, 200 classes.

    The test split is the official validation split, as the official test split has no labels;
    validation is a fixed tenth of every class of the official training images.

    Args:
        root: Folder that holds ``tiny-imagenet-200``; None searches the folder that the
            environment variable ROBUSTKD_DATA names, then ``~/.cache/robustkd``, then downloads.
        reading: How images are read.

    Raises:
        InputError: If the files are missing or damaged.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    official = Official(
        "Tiny-ImageNet",
        _FOLDER,
        ("train", "val"),
        lambda cache: download_and_extract_archive(_ARCHIVE, str(cache), md5=_MD5),
    )
    place = official.locate(root)
    reading = reading or Reading()
    return compose_folder(
        "tiny-imagenet",
        Path(os.path.realpath(place / _FOLDER)),
        replace(reading, image_size=reading.image_size or _SIZE),
    )
