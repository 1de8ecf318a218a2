"""Training batches without end, for trainings of a number of steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from robustkd.core.errors import UsageError
from robustkd.core.types import UNLABELLED, Batch, DataSource, Labels
from robustkd.training.sources import check_batch


def endless(
    data: DataSource,
    batch_size: int,
    device: torch.device,
    *,
    shuffle: torch.Generator,
    augment: torch.Generator | None = None,
    least: int | None = None,
) -> Iterator[Batch]:
    """Yield shuffled batches of training images, epoch after epoch.

    Args:
        data: The images.
        batch_size: Images per batch; all of them if there are fewer.
        device: Device of the batches.
        shuffle: Generator of the order.
        augment: Generator of the augmentation; None for no augmentation.
        least: Smaller batches, such as the last one of an epoch, are left out; None to leave out
            all that are not full.

    Raises:
        UsageError: If a pass has no image, when the next batch is taken.
        InputError: If a label of a user's own source is no class, likewise.
    """
    size = min(batch_size, data.size("train"))
    least = size if least is None else min(least, size)
    first = True
    while True:
        largest, done = 0, False
        for batch in data.batches(
            "train", batch_size=size, device=device, shuffle=shuffle, augment=augment
        ):
            if first:  # later passes have the same images, apart from their augmentation
                check_batch(batch, data, "train")
            largest = max(largest, len(batch.labels))
            if len(batch.labels) >= least:
                done = True
                yield batch
        first = False
        if not largest:
            raise UsageError(f"{data.name} has no training image")
        if not done:  # damaged images are counted in the size, and left out of the batches
            least = largest


def other_classes(labels: Labels, shift: Labels, anyone: Labels, classes: int) -> Labels:
    """Return a class for each image that is not its own; any class for an image without a label.

    Args:
        labels: Labels of the images.
        shift: Distance of the class from the label, 1 to ``classes - 1``.
        anyone: Class of each image that has no label.
        classes: Number of classes.

    >>> other_classes(*map(torch.tensor, ([2, 0, -1], [1, 2, 1], [0, 0, 1])), classes=3)
    tensor([0, 2, 1])
    """
    return torch.where(labels == UNLABELLED, anyone, (labels + shift) % classes)
