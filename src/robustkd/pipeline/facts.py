"""Facts about data and networks of a run, measured for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from robustkd import models
from robustkd.core.types import DataSource, Split
from robustkd.training.inference import accuracy_by_class
from robustkd.training.metrics import Proportion


@dataclass(frozen=True)
class CleanAccuracy:
    """Accuracy of one network on the clean test images, and its size.

    Attributes:
        by_class: Accuracy on the images of each class.
        parameters: Number of learnable parameters.
    """

    by_class: Sequence[Proportion]
    parameters: int

    @property
    def acc(self) -> Proportion:
        """Accuracy on all images."""
        return sum(self.by_class, start=Proportion(0, 0))


def measure_clean(model: nn.Module, clean: DataSource) -> CleanAccuracy:
    """Measure a network in one pass over the test images."""
    return CleanAccuracy(accuracy_by_class(model, clean, "test"), models.parameters(model))


def data_record(clean: DataSource) -> dict[str, object]:
    """Return the shape of the images and the size of each split, as JSON values."""
    return {
        "shape": list(clean.image_shape),
        **{split: clean.size(split) for split in get_args(Split)},
    }


def class_record(teacher: CleanAccuracy, student: CleanAccuracy) -> dict[str, list[int]]:
    """Return, for each class, the number of test images and of hits, as JSON values."""
    return {
        "images": [count.n for count in teacher.by_class],
        "teacher": [count.hits for count in teacher.by_class],
        "student": [count.hits for count in student.by_class],
    }
