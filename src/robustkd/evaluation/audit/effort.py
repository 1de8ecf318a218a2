"""Amount of computation of an audit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustkd.core.validation import check_count, check_share


@dataclass(frozen=True)
class Effort:
    """Numbers that decide how long an audit takes.

    Attributes:
        strengths: Bounds of the learned transformations as shares of the full bounds, in (0, 1] and
            in decreasing order.
        steps: Optimiser steps at each strength.
        batch: Images per step and class, over all families.
        held_out: Held-out images per class, family and strength.
        validation: Largest number of validation images that are used.
        references: Number of reference networks; possibly 0.
        reference_images: Number of training images, over all epochs, that a reference sees.
        margins: Random images from which the margin of each class is maximised.
        margin_steps: Optimiser steps on each of them.
        accuracy_images: Number of validation images on which accuracies are measured.
        brief: Whether statistics that take long and are not part of the verdict are left out.

    Raises:
        UsageError: If a number is out of range.
    """

    strengths: tuple[float, ...] = (1.0, 0.5)
    steps: int = 30
    batch: int = 28
    held_out: int = 40
    validation: int = 1000
    references: int = 3
    reference_images: int = 12_000
    margins: int = 6
    margin_steps: int = 50
    accuracy_images: int = 1000
    brief: bool = False

    def __post_init__(self) -> None:
        for strength in self.strengths:
            check_share(strengths=strength)
        check_count(
            steps=self.steps,
            batch=self.batch,
            held_out=self.held_out,
            validation=self.validation,
            reference_images=self.reference_images,
            margins=self.margins,
            margin_steps=self.margin_steps,
            accuracy_images=self.accuracy_images,
        )
        check_count(least=0, references=self.references)

    @property
    def search_steps(self) -> int:
        """Number of optimiser steps of a search."""
        return self.steps * len(self.strengths)

    def for_classes(self, classes: int) -> Effort:
        """Return the effort for a number of classes; each of many classes gets less.

        >>> Effort(batch=28).for_classes(10).batch, Effort(batch=28).for_classes(200).batch
        (28, 7)
        """
        return replace(
            self,
            batch=min(self.batch, max(7, 1120 // classes)),
            held_out=min(self.held_out, max(8, 1600 // classes)),
            margins=min(self.margins, max(1, 240 // classes)),
        )


FULL = Effort()
"""Effort of the full audit."""
QUICK = Effort(
    strengths=(0.5,),
    steps=32,
    batch=20,
    held_out=24,
    references=2,
    reference_images=10_000,
    margins=2,
    margin_steps=20,
    accuracy_images=500,
    brief=True,
)
"""Effort of the quick audit: one strength, fewer and shorter references, and fewer statistics."""
