"""Random crops and flips of batches, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images, Places
from robustkd.core.validation import check_share

Augmentation: TypeAlias = Callable[[Images, torch.Generator], Images]

AUGMENTATIONS = ("none", "light", "randaugment")
"""Augmentations by name; see :func:`named`."""


@runtime_checkable
class Divisible(Protocol):
    """Augmentation that can augment some images of a batch as it would augment the whole batch."""

    def part(
        self, images: Images, generator: torch.Generator, places: Places, total: int
    ) -> Images:
        """Augment some images of a batch.

        Args:
            images: Images to augment.
            generator: Generator of the random numbers, which advances as for the whole batch.
            places: Places of the images in the batch.
            total: Number of images in the batch.
        """


_MOST_MAGNITUDE = 30


@dataclass(frozen=True)
class CropFlip:
    """Shift every image randomly by up to ``pad`` pixels, and mirror it with probability 1/2.

    This equals reflection padding by ``pad``, a uniformly random crop to the old size, and a
    horizontal flip with probability 1/2, independently for every image.

    Args:
        pad: Largest shift in pixels, at least 0 and smaller than the images.
        flip: If True, mirror images; use False if mirroring changes the class, as for digits.

    Raises:
        UsageError: If ``pad`` is negative, or (when called) not smaller than the images.

    Example:
        >>> images = torch.rand(5, 3, 8, 8)
        >>> CropFlip(pad=2, flip=True)(images, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 8])
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"pad is {self.pad}; expected at least 0; use pad=0 for no crops")

    def __str__(self) -> str:
        """Return what is done in words.

        >>> str(CropFlip(pad=2, flip=True)), str(CropFlip(pad=1)), str(CropFlip())
        ('shifts of up to 2 pixels and mirroring', 'shifts of up to 1 pixel', 'no augmentation')
        """
        shifts = f"shifts of up to {self.pad} pixel{'s' if self.pad > 1 else ''}"
        parts = [shifts] * (self.pad > 0) + ["mirroring"] * self.flip
        return " and ".join(parts) or "no augmentation"

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Augment ``images`` (N x C x H x W) with draws from ``generator``.

        Random numbers are drawn on the device of the generator, so that a CPU generator gives
        the same crops on every device.

        Returns:
            Float32 images of the same shape and range, channels_last. The input is not changed,
            and is returned itself if there is nothing to do.
        """
        return self._augmented(images, generator, None, len(images))

    def part(
        self, images: Images, generator: torch.Generator, places: Places, total: int
    ) -> Images:
        """Augment some images of a batch; see :class:`Divisible`."""
        return self._augmented(images, generator, places, total)

    def _augmented(
        self, images: Images, generator: torch.Generator, places: Places | None, total: int
    ) -> Images:
        images = images.to(torch.float32, memory_format=torch.channels_last)
        if not (self.pad or self.flip):
            return images
        n, _, height, width = images.shape
        if self.pad >= min(height, width):
            raise UsageError(
                f"pad is {self.pad}; expected less than the image size {height}x{width}; lower it"
            )
        rows = self._window(total, height, generator)
        columns = self._window(total, width, generator)
        if self.flip:
            mirrored = torch.randint(2, (total, 1), generator=generator, device=generator.device)
            columns = torch.where(mirrored == 1, columns.flip(1), columns)
        if places is not None:
            rows, columns = rows[places], columns[places]
        rows, columns = rows.to(images.device), columns.to(images.device)
        sample = torch.arange(n, device=images.device)[:, None, None]
        # The slice between index tensors moves the channels to the end, as in channels_last.
        picked = images[sample, :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _window(self, n: int, size: int, generator: torch.Generator) -> Int[Tensor, "n size"]:
        """Return the rows (or columns) of each of ``n`` crops, reflected at the border."""
        device = generator.device
        shift = torch.randint(2 * self.pad + 1, (n, 1), generator=generator, device=device)
        position = shift - self.pad + torch.arange(size, device=device)
        last = size - 1
        return last - (last - position.abs()).abs()


@dataclass(frozen=True)
class ZoomFlip:
    """Enlarge a random square of every image, and mirror it with probability 1/2.

    The area of the square is a uniformly random share of the image between ``least`` and 1, at a
    random position. Source: Szegedy et al. 2015, "Going Deeper with Convolutions", arXiv 1409.4842.
    Differences: the aspect ratio is kept, and small crops are excluded by default, because the
    student is trained on the teacher's outputs for the same crop.

    Args:
        least: Smallest share of the area, in (0, 1].
        flip: If True, mirror images; use False if mirroring changes the class.

    Raises:
        UsageError: If ``least`` is out of range.

    Example:
        >>> images = torch.rand(5, 3, 8, 8)
        >>> ZoomFlip()(images, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 8])
    """

    least: float | int = 0.25
    flip: bool = True

    def __post_init__(self) -> None:
        check_share(least=self.least)

    def __str__(self) -> str:
        """Return what is done in words.

        >>> str(ZoomFlip(least=0.25, flip=True))
        'zooms to 25 % of the area or more and mirroring'
        """
        zooms = f"zooms to {100 * self.least:.0f} % of the area or more"
        return f"{zooms} and mirroring" if self.flip else zooms

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Augment ``images`` (N x C x H x W) with random numbers from ``generator``.

        Returns:
            Float32 images of the same shape and range, channels_last; the input is not changed.
        """
        return self._augmented(images, generator, None, len(images))

    def part(
        self, images: Images, generator: torch.Generator, places: Places, total: int
    ) -> Images:
        """Augment some images of a batch; see :class:`Divisible`."""
        return self._augmented(images, generator, places, total)

    def _augmented(
        self, images: Images, generator: torch.Generator, places: Places | None, total: int
    ) -> Images:
        drawn = torch.rand(
            (4, total), generator=generator, device=generator.device, dtype=torch.float32
        )
        drawn = drawn if places is None else drawn[:, places]
        if not len(images):
            return images  # of a part of the batch
        area, across, down, mirror = drawn.to(images.device)
        side = (self.least + (1 - self.least) * area).sqrt()
        facing = torch.where(mirror < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(side)
        window = torch.zeros(len(images), 2, 3, device=images.device, dtype=torch.float32)
        window[:, 0, 0] = side * facing
        window[:, 1, 1] = side
        window[:, 0, 2] = (2 * across - 1) * (1 - side)
        window[:, 1, 2] = (2 * down - 1) * (1 - side)
        grid = F.affine_grid(window, list(images.shape), align_corners=False)
        zoomed = F.grid_sample(
            images.to(torch.float32), grid, padding_mode="border", align_corners=False
        )
        # Rounding in the interpolation can exceed the range by the last bit.
        return zoomed.clamp(0, 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class RandAugmented:
    """Augment images lightly, and then by RandAugment of torchvision, each image on its own.

    Source: Cubuk et al. 2019, "RandAugment: Practical automated data augmentation with a reduced
    search space", arXiv 1909.13719. The operations are those of
    ``torchvision.transforms.v2.RandAugment`` with bilinear interpolation.

    Args:
        light: Augmentation that is applied first.
        operations: Number of operations for each image.
        magnitude: Strength of the operations, 0 to 30.

    Raises:
        UsageError: If a number is out of range.

    Example:
        >>> images = torch.rand(5, 3, 8, 8)
        >>> RandAugmented(CropFlip())(images, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 8])
    """

    light: Augmentation
    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if self.operations < 1:
            raise UsageError(f"operations is {self.operations}; expected at least 1")
        if not 0 <= self.magnitude <= _MOST_MAGNITUDE:
            raise UsageError(f"magnitude is {self.magnitude}; expected 0 to {_MOST_MAGNITUDE}")

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Augment ``images`` (N x C x H x W) with random numbers from ``generator``.

        Returns:
            Float32 images of the same shape and range in steps of 1/255, channels_last; the input
            is not changed.

        Raises:
            UsageError: If the images have neither one nor three channels.
        """
        if images.shape[1] not in (1, 3):
            raise UsageError(
                f"augment is 'randaugment', but images have {images.shape[1]} channels; expected 1 "
                "or 3: use 'light' or 'none'"
            )
        from torchvision.transforms import InterpolationMode, v2

        policy = v2.RandAugment(
            self.operations, self.magnitude, interpolation=InterpolationMode.BILINEAR
        )
        pixels = self.light(images, generator).mul(255).round().to(torch.uint8)
        seed = torch.randint(1 << 62, (1,), generator=generator, device=generator.device)
        # torchvision draws from the global generator, whose state is kept.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            changed = [policy(image) for image in pixels]
        floats = torch.stack(changed).float().div(255) if changed else images.float()
        return floats.contiguous(memory_format=torch.channels_last)


def part_of(
    augmentation: Augmentation,
    images: Images,
    generator: torch.Generator,
    places: Places | None,
    total: int,
) -> Images:
    """Augment some images of a batch as in the whole batch.

    Args:
        augmentation: Any augmentation, if the images are the whole batch; otherwise one that is
            :class:`Divisible`.
        images: Images to augment.
        generator: Generator of the random numbers.
        places: Places of the images in the batch; None if they are the whole batch.
        total: Number of images in the batch.

    Raises:
        UsageError: If the augmentation cannot augment a part of a batch.
    """
    if places is None:
        return augmentation(images, generator)
    if not isinstance(augmentation, Divisible):
        raise UsageError(
            f"augmentation {augmentation!r} has no method part; expected one that can augment a "
            "part of a batch"
        )
    return augmentation.part(images, generator, places, total)


def named(name: str, usual: Augmentation) -> Augmentation:
    """Return an augmentation by its name.

    Args:
        name: ``none``; ``light``, the shifts or zooms and flips that are usual for the data; or
            ``randaugment``, RandAugment after these.
        usual: Augmentation that is usual for the data.

    Raises:
        UsageError: If the name is unknown.
    """
    if name == "none":
        return CropFlip()
    if name == "light":
        return usual
    if name == "randaugment":
        return RandAugmented(usual)
    raise UsageError(f"augment is {name!r}; expected {', '.join(AUGMENTATIONS)}")


def check_augmentation(augmentation: object) -> None:
    """Raise an error for an augmentation that is no function of images and a generator.

    Raises:
        UsageError: If it is something else, such as a name.
    """
    if not callable(augmentation):
        raise UsageError(
            f"augmentation is {augmentation!r}; expected one that can be called, such as "
            "CropFlip(pad=4, flip=True), or CropFlip() for none"
        )


def weaker(augmentation: Augmentation) -> list[Augmentation]:
    """Return weaker forms of an augmentation, strongest first; empty if there are none.

    Shifts and zooms are halved and then left out, and then flips are.

    >>> weaker(CropFlip(pad=4, flip=True))
    [CropFlip(pad=2, flip=True), CropFlip(pad=0, flip=True), CropFlip(pad=0, flip=False)]
    """
    found: list[Augmentation] = []
    if isinstance(augmentation, ZoomFlip):
        found = [ZoomFlip((1 + augmentation.least) / 2, augmentation.flip)]
    elif isinstance(augmentation, CropFlip):
        found = [CropFlip(augmentation.pad // 2, augmentation.flip)]
    else:
        return []
    found += [CropFlip(0, augmentation.flip), CropFlip()]
    return [each for each in dict.fromkeys(found) if each != augmentation]
