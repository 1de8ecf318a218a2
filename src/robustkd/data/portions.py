"""Batches of which each process loads its own part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch

from robustkd.core.types import Batch, DataSource, Places, Plan, Split
from robustkd.data.augment import Divisible

Choice = Callable[[int], Places]
"""Function from the number of images in a batch to the places of those of this process."""


@runtime_checkable
class Divided(Protocol):
    """Data source that can load parts of its batches."""

    def portions(
        self,
        split: Split,
        *,
        batch_size: int,
        plan: Plan,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate over parts of the batches of ``batches``, which may be empty.

        Order and augmentation are those of the whole batches.

        Args:
            split: The split.
            batch_size: Largest number of images in a whole batch.
            plan: Function that chooses the images of each batch.
            device: Device of the batches.
            shuffle: Generator for a random order; None keeps the order of the split.
            augment: Generator for the augmentation; None for none.
        """


def portions(
    source: DataSource,
    split: Split,
    choice: Choice | None,
    *,
    batch_size: int,
    join: bool = False,
    device: torch.device | str = "cpu",
    shuffle: torch.Generator | None = None,
    augment: torch.Generator | None = None,
) -> Iterator[tuple[Batch, int]]:
    """Iterate over this process's part of every batch.

    A source that is not :class:`Divided`, or whose augmentation is not
    :class:`robustkd.data.augment.Divisible`, makes whole batches, of which a part is taken.

    Args:
        source: The images.
        split: The split.
        choice: Function that chooses the images of this process; None for all.
        batch_size: Largest number of images in a whole batch.
        join: If True, a last batch of one image is joined to the batch before.
        device: Device of the batches.
        shuffle: Generator for a random order; None keeps the order of the split.
        augment: Generator for the augmentation; None for none.

    Yields:
        Images of this process, and the number of images in the whole batch.
    """
    can_augment = augment is None or isinstance(getattr(source, "augmentation", None), Divisible)
    if choice is None or not (isinstance(source, Divided) and can_augment):
        whole = source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle, augment=augment
        )
        for batch in joined(whole) if join else whole:
            total = len(batch.labels)
            if choice is not None:
                rows = choice(total).to(batch.labels.device)
                images = batch.images[rows].contiguous(memory_format=torch.channels_last)
                batch = Batch(images, batch.labels[rows], batch.rows[rows])
            yield batch, total
        return
    groups: list[list[int]] = []  # sizes of the batches that are joined to one

    def plan(sizes: Sequence[int]) -> list[Places]:
        groups.extend([size] for size in sizes)
        if join and len(sizes) > 1 and sizes[-1] == 1:
            groups[-2:] = [[sizes[-2], 1]]
        return [rows for group in groups for rows in _of_each(choice(sum(group)), group)]

    found = source.portions(
        split, batch_size=batch_size, plan=plan, device=device, shuffle=shuffle, augment=augment
    )
    held: list[Batch] = []
    done = 0
    for batch in found:
        held.append(batch)
        if len(held) == len(groups[done]):
            yield _together(held), sum(groups[done])
            held, done = [], done + 1


def joined(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches, with a last batch of one image merged into the batch before."""
    held = next(batches, None)
    if held is None:
        return
    for batch in batches:
        if len(batch.labels) == 1:
            held = _together([held, batch])
        else:
            yield held
            held = batch
    yield held


def _together(batches: Sequence[Batch]) -> Batch:
    """Join batches to one."""
    if len(batches) == 1:
        return batches[0]
    images, labels, rows = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, rows)


def _of_each(places: Places, sizes: Sequence[int]) -> list[Places]:
    """Divide places in joined batches into places in each of them."""
    found, start = [], 0
    for size in sizes:
        found.append(places[(places >= start) & (places < start + size)] - start)
        start += size
    return found
