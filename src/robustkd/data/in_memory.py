"""Data source in memory, as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.preprocessing import check_preprocessing
from robustkd.core.types import RESIZES, Batch, Images, Labels, Places, Plan, Split
from robustkd.data.augment import Augmentation, CropFlip, check_augmentation, part_of
from robustkd.data.labelled import Labelled, first_rows


@dataclass(frozen=True, eq=False)
class InMemory:
    """A `robustkd.core.types.DataSource` whose three splits are byte tensors.

    Args:
        name: Short name, written into results.
        classes: Names of the classes; the label k means ``classes[k]``.
        train: Images for fitting weights.
        validation: Images for selection.
        test: Images for the final measurement.
        augmentation: Augmentation that `batches` applies if it receives a generator for it; by
            default none.
        resize: How files were brought to this shape, one of `robustkd.core.types.RESIZES`; empty if
            unknown. This and the next two are written into models of these images, so that other
            files are read alike.
        crop: Share of each file's image that was kept, in (0, 1].
        interpolation: Filter for resampling, one of `robustkd.core.types.INTERPOLATIONS`.

    Raises:
        UsageError: If a tensor has the wrong type or shape, or a setting is unknown.
        InputError: If a split is empty, or its labels do not fit its images or the classes.
    """

    name: str
    classes: tuple[str, ...]
    train: Labelled = field(repr=False)
    validation: Labelled = field(repr=False)
    test: Labelled = field(repr=False)
    augmentation: Augmentation = field(default_factory=CropFlip)
    resize: str = field(default="", repr=False)
    crop: float | int = field(default=1.0, repr=False)
    interpolation: str = field(default="bilinear", repr=False)

    def __post_init__(self) -> None:
        check_augmentation(self.augmentation)
        check_preprocessing(
            resize=self.resize or RESIZES[0], crop=self.crop, interpolation=self.interpolation
        )
        for split in get_args(Split):
            held = self._held(split)
            held.check(f"{self.name} {split}", len(self.classes))
            if held.images.shape[1:] != self.train.images.shape[1:]:
                raise UsageError(
                    f"{self.name} {split}: images are {tuple(held.images.shape[1:])}, expected "
                    f"{self.image_shape} as in train; give all splits one shape"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def size(self, split: Split) -> int:
        """Number of images in ``split``."""
        return len(self._held(split).labels)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate once over ``split``, as `robustkd.core.types.DataSource.batches` describes.

        Images are moved to the device as bytes, which is a quarter of the size of floats.

        Raises:
            UsageError: If ``batch_size`` is below 1.
        """
        held = self._held(split)
        order = pass_order(self.size(split), batch_size, shuffle)
        return (self._batch(held, part, device, augment) for part in torch.split(order, batch_size))

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
        """Iterate over parts of the batches of `batches`; see `robustkd.data.portions.Divided`."""
        held = self._held(split)
        order = pass_order(self.size(split), batch_size, shuffle)
        parts = torch.split(order, batch_size)
        return (
            self._batch(held, part, device, augment, rows)
            for part, rows in zip(parts, plan([len(part) for part in parts]), strict=True)
        )

    def subset(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> InMemory:
        """Return a subset of the source with the same shares of the classes.

        Args:
            train: Number of training images to keep, at least the number of classes; None for all.
            validation: Likewise.
            test: Likewise.
            seed: Seed of the choice; with one seed, a smaller subset is contained in a larger one.

        Raises:
            UsageError: If a number is out of range.
        """
        return replace(
            self,
            train=self._first("train", train, seed),
            validation=self._first("validation", validation, seed),
            test=self._first("test", test, seed),
        )

    def with_augmentation(self, augmentation: Augmentation) -> InMemory:
        """Return a source of the same images with another augmentation."""
        return replace(self, augmentation=augmentation)

    def _held(self, split: Split) -> Labelled:
        held: Labelled = getattr(self, split)
        return held

    def _first(self, split: Split, n: int | None, seed: int) -> Labelled:
        held = self._held(split)
        if n is None:
            return held
        return held.take(
            first_rows(
                held.labels,
                n,
                split=split,
                name=self.name,
                classes=len(self.classes),
                seed=seed,
            )
        )

    def _batch(
        self,
        held: Labelled,
        index: Labels,
        device: torch.device | str,
        augment: torch.Generator | None,
        places: Places | None = None,
    ) -> Batch:
        total = len(index)
        index = index if places is None else index[places]
        images = to_floats(held.images[index], device)
        if augment is not None:
            images = part_of(self.augmentation, images, augment, places, total)
        return Batch(images, held.labels[index].to(device), index.to(device, torch.int64))


def pass_order(size: int, batch_size: int, shuffle: torch.Generator | None) -> Labels:
    """Return the order of the rows in one pass over a split, as int32.

    Raises:
        UsageError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; expected at least 1; raise it")
    if shuffle is None:
        return torch.arange(size, dtype=torch.int32)
    return torch.randperm(size, generator=shuffle, device=shuffle.device, dtype=torch.int32).cpu()


def to_floats(
    pixels: UInt8[Tensor, "n channels height width"], device: torch.device | str
) -> Images:
    """Convert bytes to floats in [0, 1], channels_last, on ``device``."""
    moved = pixels.to(device)
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)
