"""Augmentation of training images that the teacher still classifies correctly.

Student and teacher see the same augmented images. If the teacher was never trained on shifted
images, its outputs on them are often wrong, and the student learns them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.statistics import difference_interval
from robustkd.core.types import DataSource
from robustkd.data import InMemory, Pictures
from robustkd.data.augment import Augmentation, CropFlip, named, weaker
from robustkd.training.inference import accuracy_on_some
from robustkd.training.metrics import Proportion

IMAGES = 512
"""Number of validation images on which the teacher is measured."""
MOST_LOST = 0.03
"""Largest loss of accuracy that is accepted for an augmentation, as a fraction."""


@dataclass(frozen=True, slots=True)
class AugmentationChoice:
    """Choice of the augmentation of a run.

    Attributes:
        clean: The data with this augmentation.
        line: What the user should know; empty if the usual augmentation is used as it is.
        record: The choice and the teacher's accuracies, as JSON values; empty if nothing was
            measured.
    """

    clean: DataSource
    line: str
    record: dict[str, object]


def choose_augmentation(
    teacher: nn.Module, clean: DataSource, name: str | None = None
) -> AugmentationChoice:
    """Choose the strongest augmentation on which a teacher is about as accurate as without.

    The teacher's accuracy is measured on up to 512 validation images as they are, and augmented. If
    the lower end of the interval of the difference is above 3 points, the augmentation is too
    strong: shifts and zooms are halved, left out, and then flips are left out as well. An
    augmentation that the user names is kept.

    Args:
        teacher: The network.
        clean: The user's clean images.
        name: One of :data:`robustkd.data.augment.AUGMENTATIONS`; None for the usual augmentation,
            made weaker where necessary.

    Raises:
        UsageError: If the name is unknown, or the data source has an augmentation of its own that
            cannot be changed.
    """
    if not isinstance(clean, InMemory | Pictures):
        if name is not None:
            raise UsageError(
                f"augment is {name!r}; {clean.name} has an augmentation of its own: leave it out"
            )
        return AugmentationChoice(clean, "", {})
    first = clean.augmentation if name is None else named(name, clean.augmentation)
    plain = _measured(teacher, clean, None)
    steps = [] if name is not None else weaker(first)
    tried = [(first, _measured(teacher, clean, first))]
    for step in steps:
        if not _is_worse(plain, tried[-1][1]):
            break
        tried.append((step, _measured(teacher, clean, step)))
    used, accuracy = tried[-1]
    record = {
        "used": repr(used),
        **({"named": name} if name is not None else {}),
        "images": plain.n,
        "teacher_plain": plain.value,
        "teacher_augmented": accuracy.value,
        **({"too_strong": [repr(each) for each, _ in tried[:-1]]} if len(tried) > 1 else {}),
    }
    line = _line(plain, tried[0], None if used is first else used)
    return AugmentationChoice(clean.with_augmentation(used), line, record)


def _measured(
    teacher: nn.Module, clean: InMemory | Pictures, augmentation: Augmentation | None
) -> Proportion:
    nothing = augmentation in (None, CropFlip())
    data = clean if augmentation is None else clean.with_augmentation(augmentation)
    return accuracy_on_some(teacher, data, "validation", images=IMAGES, augment=not nothing)


def _is_worse(plain: Proportion, augmented: Proportion) -> bool:
    ends = plain.wilson(), augmented.wilson()
    return difference_interval(plain.value, ends[0], augmented.value, ends[1])[0] > MOST_LOST


def _line(
    plain: Proportion, first: tuple[Augmentation, Proportion], used: Augmentation | None
) -> str:
    """Return what the user should know about an augmentation that is too strong."""
    augmentation, accuracy = first
    if not _is_worse(plain, accuracy):
        return ""
    loss = (
        f"augmentation: the teacher's accuracy on {plain.n} validation images is {plain} as they "
        f"are and {accuracy} with {augmentation}, so that it was probably not trained with it"
    )
    if used is not None:
        return f"{loss}; the student is trained with {used} instead (--augment light keeps it)"
    return f"{loss}; the student learns these outputs: --augment none is safer"
