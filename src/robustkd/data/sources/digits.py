"""Handwritten digits bundled with scikit-learn: real data without a download."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from robustkd.core.errors import UsageError
from robustkd.data.augment import CropFlip
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled, stratified_order

_SIZE = 16
_TEST, _VALIDATION = 357, 240
_SPLIT_SEED = 0


def load_digits(root: Path | None = None) -> InMemory:
    """The 1,797 digits of the UCI optical recognition set, enlarged from 8x8 to 16x16.

    The fixed splits have 1,200 training, 240 validation and 357 test images of 1 x 16 x 16, each
    with equal shares of the ten classes. scikit-learn bundles only the test part of the original
    set, so the splits are ours, and results cannot be compared with those on the original splits.

    Args:
        root: Must be None; the argument exists because every source has it.

    Raises:
        UsageError: If ``root`` is given.
    """
    if root is not None:
        raise UsageError(
            f"root is {str(root)!r}; digits come with scikit-learn and take no folder; leave it out"
        )
    from sklearn import datasets

    bundle = datasets.load_digits()
    sixteenths = torch.from_numpy(bundle.images).to(torch.float32).unsqueeze(1)
    enlarged = F.interpolate(sixteenths / 16, size=(_SIZE, _SIZE), mode="bicubic")
    # Bicubic interpolation overshoots at strong edges.
    pixels = enlarged.clamp(0, 1).mul(255).round().to(torch.uint8)
    everything = Labelled(pixels, torch.from_numpy(bundle.target).to(torch.int64))
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
