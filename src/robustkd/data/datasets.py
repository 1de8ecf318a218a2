"""Any ``torch.utils.data.Dataset`` of (image, label) pairs as a data source."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.core.names import unfit
from robustkd.core.types import Labels, Split
from robustkd.data.augment import Augmentation, CropFlip, check_augmentation
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled, stratified_order

_HELD_OUT = 10
"""One in this many images is held out for each missing split."""
_SEED = 0
_LARGEST_LABEL = 2**31 - 1
_OPAQUE = 255
_PLAIN = {"L": "L", "RGB": "RGB", "1": "L", "LA": "L", "RGBA": "RGB", "P": "RGB", "PA": "RGB"}
"""Modes of Pillow whose pixels are colours or grey values of 8 bits, and what they become."""


def from_dataset(
    train: Dataset[tuple[object, int]],
    *,
    validation: Dataset[tuple[object, int]] | None = None,
    test: Dataset[tuple[object, int]] | None = None,
    classes: Sequence[str] = (),
    name: str = "dataset",
    augmentation: Augmentation | None = None,
) -> InMemory:
    """Read datasets of (image, label) pairs into memory.

    An image is a PIL image, a byte array or tensor (H x W, H x W x C or C x H x W), or a float
    tensor (C x H x W) in [0, 1]. Do not normalise: every model normalises in its first layer. All
    images must have the same size, and one or three channels. PIL images of mode L, RGB, 1 (black
    and white), LA, RGBA, P and PA (a palette) are read if no pixel is transparent; those with a
    palette become RGB.

    Args:
        train: Training images, for example a data set of torchvision; not a ``DataLoader``.
        validation: Validation images; if None, a fixed tenth of every class of ``train``.
        test: Test images; if None, a fixed tenth of every class of ``train``.
        classes: Names of the classes, printable and without repetition; if empty,
            ``train.classes``, or the class numbers.
        name: Name of the data in results.
        augmentation: Augmentation of training images, such as ``robustkd.data.CropFlip(pad=4,
            flip=True)`` for random crops and flips; by default none.

    Returns:
        A data source in memory, for :func:`robustkd.distill`, :func:`robustkd.detoxify` and
        :func:`robustkd.run`.

    Raises:
        UsageError: If a dataset has no length, names of classes are not usable, there are none
            and a class number has no image, or the augmentation is none.
        InputError: If an item is no pair, a label is no class number or has no name, or an image
            has another type, size or range than described.

    Example:
        >>> import robustkd
        >>> import torch
        >>> images = torch.zeros(30, 1, 8, 8)
        >>> pairs = torch.utils.data.TensorDataset(images, torch.arange(30) % 3)
        >>> data = robustkd.from_dataset(pairs, classes=["a", "b", "c"])
        >>> [data.size(split) for split in ("train", "validation", "test")]
        [24, 3, 3]
    """
    augmentation = CropFlip() if augmentation is None else augmentation
    check_augmentation(augmentation)
    if isinstance(classes, str):  # of which Python would take the letters
        raise UsageError(f"classes is {classes!r}; expected a list of names")
    names = tuple(classes) or _stated_names(train)
    _check_names(names)
    whole = _read(train, "train")
    names = names or _numbers(whole.labels)
    given: dict[Split, Dataset[tuple[object, int]] | None]
    given = {"validation": validation, "test": test}
    missing: list[Split] = [split for split, dataset in given.items() if dataset is None]
    parts = {split: _read(found, split) for split, found in given.items() if found is not None}
    for split, part in {"train": whole, **parts}.items():
        part.check(f"{name} {split}", len(names))
    held_out = _held_out(whole.labels, missing, names)
    parts |= {split: whole.take(rows) for split, rows in held_out.items() if split in missing}
    order = held_out["train"]
    return InMemory(
        name=name,
        classes=names,
        train=whole.take(order) if missing else whole,
        validation=parts["validation"],
        test=parts["test"],
        augmentation=augmentation,
    )


def _held_out(labels: Labels, missing: Sequence[Split], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the rows of each missing split, a tenth of every class, and those of ``train``.

    Raises:
        InputError: If a class has too few images to be in every split.
    """
    sizes = labels.bincount()
    least = 1 + len(missing)
    rare = ((sizes > 0) & (sizes < least)).nonzero().flatten().tolist()
    if rare:
        raise InputError(
            f"class {quoted(names[rare[0]])} has too few images, {sizes[rare[0]]}; "
            f"{' and '.join(missing)} are held out from every class, so expected at least {least}: "
            f"add images, or give {missing[0]}"
        )
    each = (sizes / _HELD_OUT).round().clamp_min(1).long()
    order = stratified_order(labels, seed=_SEED)
    own = labels[order]
    by_class = own.argsort(stable=True)
    rank = torch.empty_like(own)
    rank[by_class] = torch.arange(len(own)) - (sizes.cumsum(0) - sizes)[own[by_class]]
    turn = (rank // each[own]).clamp_max(len(missing))
    return {split: order[turn == place] for place, split in enumerate((*missing, "train"))}


def _stated_names(train: object) -> tuple[str, ...]:
    """Return the names of the classes in a dataset of torchvision; empty if it has none.

    ImageNet has several names for a class, of which the first is used, and two classes of one name,
    which get their numbers.
    """
    stated = [
        str(each[0] if isinstance(each, tuple | list) and each else each)
        for each in getattr(train, "classes", ())
    ]
    return tuple(
        f"{name} ({number})" if stated.count(name) > 1 else name
        for number, name in enumerate(stated)
    )


def _check_names(names: Sequence[str]) -> None:
    """Raise an error for names that results cannot contain, or that are given twice."""
    for name in names:
        if (expected := unfit(name)) is not None:
            raise UsageError(f"class name {name!a} is not usable; expected {expected}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UsageError(f"class name {twice!a} is given twice; expected one name for each class")


def _numbers(labels: Labels) -> tuple[str, ...]:
    """Return the class numbers as names.

    Raises:
        UsageError: If a class number has no image.
    """
    found = labels.unique()  # in order; the largest label may be far above their number
    gaps = (found != torch.arange(len(found))).nonzero().flatten().tolist()
    if gaps:
        raise UsageError(
            f"class {gaps[0]} has no training image; expected labels from 0 without a gap, or "
            "the names of all classes in classes"
        )
    return tuple(map(str, range(len(found))))


def _read(dataset: Dataset[tuple[object, int]], split: str) -> Labelled:
    if isinstance(dataset, DataLoader):
        raise UsageError(f"{split} is a DataLoader; expected its dataset: give loader.dataset")
    if not isinstance(dataset, Sized):
        raise UsageError(f"{split}: the dataset has no length; expected a map-style dataset")
    images: list[Tensor] = []
    labels: list[int] = []
    for row in range(len(dataset)):
        image, label = _pair(cast(Dataset[object], dataset)[row], f"{split} item {row}")
        pixels = _bytes(image, f"{split} image {row}")
        if images and pixels.shape != images[0].shape:
            raise InputError(
                f"{split} image {row} is {tuple(pixels.shape)}; expected {tuple(images[0].shape)} "
                "as the first; resize and convert all images alike"
            )
        images.append(pixels)
        labels.append(label)
    if not images:
        raise InputError(f"{split}: no images, expected at least one; check the dataset")
    if min(labels) < 0:
        raise InputError(f"{split}: the label {min(labels)} is below 0; expected class numbers")
    if max(labels) > _LARGEST_LABEL:
        raise InputError(
            f"{split}: the label {max(labels)} is above {_LARGEST_LABEL}; expected class numbers"
        )
    return Labelled(torch.stack(images), torch.tensor(labels, dtype=torch.int64))


def _pair(item: object, where: str) -> tuple[object, int]:
    """Return the image and the class number of an item of a dataset."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"a {type(item).__name__}"
        if isinstance(item, tuple | list):
            found += f" of {len(item)}"
        raise InputError(f"{where} is {found}; expected a pair of an image and a label")
    image, label = item
    if isinstance(label, Tensor | np.ndarray | np.generic):
        if (label.numel() if isinstance(label, Tensor) else label.size) != 1:
            raise InputError(
                f"{where} has a label of shape {tuple(label.shape)}; expected one class number: "
                "several labels of an image are not supported, and one-hot labels need argmax"
            )
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise InputError(
            f"{where} has the label {label!r} of type {type(label).__name__}; expected a class "
            "number"
        )
    return image, label


def _plain(image: Image.Image, where: str) -> Image.Image:
    """Convert an image to L or RGB without loss.

    Raises:
        InputError: If its mode has other values, or a pixel is transparent.
    """
    mode = _PLAIN.get(image.mode)
    if mode is None:
        raise InputError(
            f"{where} has the mode {image.mode!r} of Pillow; expected {', '.join(_PLAIN)}: convert "
            "it to RGB or L"
        )
    if image.mode in ("L", "RGB"):
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min(initial=_OPAQUE) < _OPAQUE:
            raise InputError(
                f"{where} has transparent pixels; expected an opaque image: paste it on a "
                "background, and convert it to RGB or L"
            )
    return image.convert(mode)


def _bytes(image: object, where: str) -> Tensor:
    """Convert an image to bytes, C x H x W."""
    if isinstance(image, Image.Image):
        image = _plain(image, where)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
    else:
        pixels = torch.from_numpy(np.array(image))  # copied, because PIL's memory is read-only
        if pixels.ndim == 3:
            pixels = pixels.permute(2, 0, 1)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.is_floating_point():
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"{where} has values from {low:.3g} to {high:.3g}; expected 0 to 1; do not "
                "normalise, since that is the first layer of every model"
            )
        pixels = pixels.mul(255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise InputError(
            f"{where} is {pixels.dtype} of shape {tuple(pixels.shape)}; expected bytes, or floats "
            "in [0, 1], with one or three channels"
        )
    return pixels.contiguous()
