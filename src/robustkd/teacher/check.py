"""Checks, before any training, that a teacher fits the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError, printable
from robustkd.core.types import UNLABELLED, DataSource, Labels, Logits
from robustkd.models.features.taps import frozen_modes
from robustkd.training.inference import batch_size_for, finite_on, predict
from robustkd.training.metrics import Proportion, accuracy

_NEAR_CHANCE = 0.1
_FAR_BETTER = 2 / 3
"""Least share of another order among the images that one of both orders classifies correctly.

Only classes that the order moves are counted. A weak teacher can take a class for a similar one
somewhat more often than for itself, so that less than twice as many would mean little.
"""
_TRAINING_IMAGES = 4096
"""Most training images from which another order is fitted."""
_MOST_NAMED = 3
_MOST_LISTED = 12
_NAMES = "write these names to a file, one per line, and pass it with --class-names"

Confusion = Int64[Tensor, "classes classes"]


class UnfitError(InputError):
    """A teacher whose outputs do not seem to be the classes of the data, in their order."""


def check_accuracy(
    teacher: nn.Module, clean: DataSource, path: Path, *, keep_class_order: bool = False
) -> Proportion:
    """Measure a teacher before a distillation; raise an error if it does not fit the data.

    Args:
        teacher: The network.
        clean: The user's clean images.
        path: The teacher's file, for messages.
        keep_class_order: If True, a teacher whose outputs seem to be in another order than the
            classes is accepted.

    Returns:
        Accuracy on the validation images.

    Raises:
        InputError: As :func:`check_fit`, or if an output is not finite on the training images.
    """
    logits, labels = _predictions(teacher, clean, path)
    if not finite_on(teacher, clean, "train"):
        raise _not_finite(clean, path, "training")
    advice = f"{_NAMES}, or pass --keep-class-order to keep the order as it is"
    if not keep_class_order:
        _check_class_order(teacher, logits, labels, clean, path, advice)
    return _above_chance(logits, labels, clean, path)


def check_fit(
    teacher: nn.Module, clean: DataSource, path: Path, *, advice: str = _NAMES
) -> Proportion:
    """Measure a teacher on clean validation images; raise an error if it does not fit the data.

    Args:
        teacher: The network.
        clean: The user's clean images.
        path: The teacher's file, for messages.
        advice: What the user can do if its outputs seem to be in another order than the classes.

    Returns:
        Accuracy on the validation images.

    Raises:
        UnfitError: If the accuracy is near chance, or another order of the classes, which is fitted
            to training images, is far better on the validation images.
        InputError: If an output is not finite.
    """
    logits, labels = _predictions(teacher, clean, path)
    _check_class_order(teacher, logits, labels, clean, path, advice)
    return _above_chance(logits, labels, clean, path)


def _predictions(teacher: nn.Module, clean: DataSource, path: Path) -> tuple[Logits, Labels]:
    """Return logits and labels of the validation images."""
    logits, labels = predict(teacher, clean, "validation")
    # Losses square the logits.
    if not logits.square().isfinite().all():
        raise _not_finite(clean, path, "validation")
    return logits, labels


def _above_chance(logits: Logits, labels: Labels, clean: DataSource, path: Path) -> Proportion:
    """Return the accuracy; raise an error if it is near chance."""
    found = accuracy(logits, labels)
    chance = 1 / len(clean.classes)
    if found.value < chance + _NEAR_CHANCE * (1 - chance) or found.wilson()[0] <= chance:
        raise UnfitError(
            f"teacher {printable(path.name)}: accuracy is {found} on {found.n} validation images "
            f"of {clean.name}, near chance ({chance:.1%}); check that the image size, the "
            "preprocessing (--mean, --std) and the classes with their order (--class-names) are "
            "those that it was trained with"
        )
    return found


def _not_finite(clean: DataSource, path: Path, images: str) -> InputError:
    return InputError(
        f"teacher {printable(path.name)}: its outputs are not finite on the {images} images of "
        f"{clean.name}; expected weights that were trained on such images"
    )


def predict_some(model: nn.Module, data: DataSource, *, images: int) -> tuple[Logits, Labels]:
    """Compute the logits of some labelled training images, which are always the same.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images; they are not augmented, and those without a label are left out.
        images: Number of images to read, rounded up to whole batches; at most all.

    Returns:
        Logits and labels on the CPU, possibly of no image.
    """
    chosen = torch.Generator().manual_seed(0)
    size, seen = batch_size_for(data.image_shape), 0
    logits, labels = [torch.empty(0, len(data.classes))], [torch.empty(0, dtype=torch.int64)]
    with torch.inference_mode(), frozen_modes(model):
        for batch in data.batches(
            "train", batch_size=size, device=device_of(model), shuffle=chosen
        ):
            labelled = batch.labels != UNLABELLED
            if labelled.any():
                logits.append(model(batch.images[labelled]).cpu().float())
                labels.append(batch.labels[labelled].cpu())
            seen += len(labelled)
            if seen >= images:
                break
    return torch.cat(logits), torch.cat(labels)


def confusion(logits: Tensor, labels: Tensor) -> Confusion:
    """Count the images of each class (rows) that go to each output (columns)."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def best_order(counts: Confusion) -> list[int]:
    """Return, for each class, the output that fits it best when every output is used once.

    The assignment maximises the number of images that are classified correctly (Kuhn 1955,
    doi 10.1002/nav.3800020109). Of equally good ones, it is one that moves the fewest classes, so
    that classes without images stay where they are.

    >>> best_order(torch.tensor([[1, 9], [8, 2]]))
    [1, 0]
    >>> best_order(torch.tensor([[0, 0, 0], [0, 0, 3], [0, 2, 0]]))
    [0, 2, 1]
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(counts)
    # All classes that stay count less than one image.
    gain = counts * (classes + 1) + torch.eye(classes, dtype=counts.dtype)
    return [int(output) for output in linear_sum_assignment(-gain.numpy())[1]]


def _check_class_order(
    teacher: nn.Module,
    logits: Logits,
    labels: Labels,
    clean: DataSource,
    path: Path,
    advice: str,
) -> None:
    """Raise an error if another order of the classes fits the validation images far better.

    The order is fitted to training images and judged on validation images. With many classes and
    few images, an order that is judged on the images that it was fitted to looks better than the
    right one. It does no harm if the teacher was trained on these training images.
    """
    counts, classes = confusion(logits, labels), clean.classes
    found = accuracy(logits, labels)
    # No order fits better than the most frequent output of each class. For most teachers this is
    # enough to know: no training image is read, and SciPy, which `best_order` uses, not imported.
    most = Proportion(int(counts.amax(dim=1).sum()), found.n)
    if not _is_clearly_better(most, found):
        return
    order = best_order(confusion(*predict_some(teacher, clean, images=_TRAINING_IMAGES)))
    fitting = Proportion(int(counts[range(len(order)), order].sum()), found.n)
    if not _is_clearly_better(fitting, found) or not _fits_moved_classes(counts, order):
        return
    moved = [label for label, output in enumerate(order) if output != label and counts[label].any()]
    moved.sort(key=lambda label: -int(counts[label, order[label]]))
    mistaken = "; ".join(
        f"{int(counts[label, order[label]])} of {int(counts[label].sum())} images of "
        f"{_shown(classes[label])} are classified as {_shown(classes[order[label]])}"
        for label in moved[:_MOST_NAMED]
    )
    # For each output k, the class that fits it.
    names = [classes[order.index(output)] for output in range(len(order))]
    raise UnfitError(
        f"teacher {printable(path.name)}: its outputs seem to be in another order than the classes "
        f"of the data: {mistaken}; its accuracy is {found.value:.1%} as it is and "
        f"{fitting.value:.1%} in the order that fits best{_kind(names)}: {_listed(names)}; {advice}"
    )


def _is_clearly_better(one: Proportion, other: Proportion) -> bool:
    clearly = one.wilson()[0] > other.wilson()[1]
    return clearly and one.value - other.value >= _NEAR_CHANCE


def _fits_moved_classes(counts: Confusion, order: Sequence[int]) -> bool:
    """Return whether an order is far better for the classes that it moves."""
    moved = [label for label, output in enumerate(order) if output != label]
    before = int(counts[moved, moved].sum())
    after = int(counts[moved, [order[label] for label in moved]].sum())
    return Proportion(after, before + after).wilson()[0] >= _FAR_BETTER


def _kind(names: Sequence[str]) -> str:
    """Return a description of an order of names, if it is a known one."""
    kinds: dict[str, Callable[[str], Any]] = {
        "case-insensitive": str.lower,
        "natural": lambda name: [
            (0, int(part), "") if part.isdigit() else (1, 0, part.lower())
            for part in re.split(r"(\d+)", name)
        ],
    }
    for kind, key in kinds.items():
        if list(names) == sorted(names, key=key):
            return f" ({kind})"
    return ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(_shown, names[:_MOST_LISTED]))
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")


def _shown(name: str) -> str:
    return printable(name)[:40]
