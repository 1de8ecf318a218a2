"""Number of steps in a pass in which a last batch of one image is joined to the batch before."""

from __future__ import annotations

import math


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of optimiser steps in one pass over some images.

    If the last batch would hold one image, this image is added to the batch before, because
    BatchNorm cannot normalise a single value.

    >>> steps_per_epoch(128, 64), steps_per_epoch(129, 64), steps_per_epoch(130, 64)
    (2, 2, 3)
    """
    return math.ceil(images / batch_size) - leaves_one(images, batch_size)


def leaves_one(images: int, batch_size: int) -> bool:
    """Return whether the last batch of a pass would hold one image."""
    return images > batch_size > 1 and images % batch_size == 1
