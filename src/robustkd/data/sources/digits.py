"""Handwritten digits bundled with scikit-learn: real data without a download."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from robustkd.core.errors import InputError, UsageError
from robustkd.data.augment import CropFlip
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled, stratified_order

_SIDE, _SIZE = 8, 16
_TEST, _VALIDATION = 357, 240
_SPLIT_SEED = 0
_FILE = "datasets/data/digits.csv.gz"
"""File of the digits in the folder of scikit-learn."""


def load_digits(root: Path | None = None) -> InMemory:
    """The 1,797 digits of the UCI optical recognition set, enlarged from 8x8 to 16x16.

    The fixed splits have 1,200 training, 240 validation and 357 test images of 1 x 16 x 16, each
    with equal shares of the ten classes. scikit-learn bundles only the test part of the original
    set, so the splits are ours, and results cannot be compared with those on the original splits.

    Args:
        root: Must be None; the argument exists because every source has it.

    Raises:
        UsageError: If ``root`` is given.
        InputError: If scikit-learn's file of the digits is missing or damaged.
    """
    if root is not None:
        raise UsageError(
            f"root is {str(root)!r}; digits come with scikit-learn and take no folder; leave it out"
        )
    rows = _read_rows()
    sixteenths = torch.from_numpy(rows[:, :-1]).to(torch.float32).reshape(-1, 1, _SIDE, _SIDE)
    enlarged = F.interpolate(sixteenths / 16, size=(_SIZE, _SIZE), mode="bicubic")
    # Bicubic interpolation overshoots at strong edges.
    pixels = enlarged.clamp(0, 1).mul(255).round().to(torch.uint8)
    everything = Labelled(pixels, torch.from_numpy(rows[:, -1]).to(torch.int64))
    order = stratified_order(everything.labels, seed=_SPLIT_SEED)
    test, validation, train = order.tensor_split([_TEST, _TEST + _VALIDATION])
    return InMemory(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        train=everything.take(train),
        validation=everything.take(validation),
        test=everything.take(test),
        augmentation=CropFlip(pad=1, flip=False),
    )


def _read_rows() -> Float[np.ndarray, "images 65"]:
    """Read the pixels of each digit, in sixteenths, and its label.

    The file is read as :func:`sklearn.datasets.load_digits` does, without importing scikit-learn,
    which takes longer than the first epoch on this data.

    Raises:
        InputError: If the file is missing or damaged.
    """
    found = find_spec("sklearn")
    folders = [] if found is None else found.submodule_search_locations or []
    file = next((path for folder in folders if (path := Path(folder, _FILE)).is_file()), None)
    if file is None:
        raise InputError(f"{_FILE} is missing from scikit-learn; install scikit-learn again")
    advice = "install scikit-learn again"
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = np.loadtxt(lines, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}); {advice}") from error
    columns = _SIDE**2 + 1
    if rows.shape[1] != columns:
        raise InputError(
            f"{file} is damaged ({rows.shape[1]} columns in place of {columns}); {advice}"
        )
    return rows
