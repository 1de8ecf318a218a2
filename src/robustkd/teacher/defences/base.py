"""Interface of all defences that clean a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from robustkd.core.types import DataSource

ONCE: Mapping[str, int] = MappingProxyType({"brief": 1})
"""Metadata of a field of a defence: a number of batches, epochs or rounds that a dry run sets to 1.

A dry run measures the time of a training batch. A number of steps within each batch is not marked,
since the batch would then take less time.
"""


_ROUNDING = 1e-9
"""More than the rounding of a difference of accuracies, and less than one image."""


@dataclass(frozen=True)
class Defended:
    """A cleaned network and the record of its cleaning.

    Attributes:
        network: A new network in eval mode; the original is unchanged.
        record: What was done, as JSON values. It always has ``accuracy_before`` and
            ``accuracy_after``, the clean validation accuracy in [0, 1].
    """

    network: nn.Module
    record: dict[str, object] = field(default_factory=dict)


@runtime_checkable
class Defence(Protocol):
    """A defence that cleans a teacher before distillation, or a finished student.

    A defence is a frozen dataclass whose fields are its hyper-parameters; numbers of batches have
    the metadata :data:`ONCE`. It receives clean images
    and a network, and never a trigger, a target class, or the indices of poisoned images.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy of the network.

        Args:
            network: Classifier of images in [0, 1], N x C x H x W; it is not changed.
            clean: Clean images: weights are trained on ``train``, and thresholds are chosen by the
                accuracy on ``validation``, which needs labels. For a training image without a
                label, the class that ``network`` predicts is used.
            seed: Seed of order, augmentation and initial values, at least 0.

        Raises:
            UsageError: If the network has no layers of the kind that the defence needs, such as
                BatchNorm.
            TrainingError: If a weight is no longer finite.
        """

    def batches(self, images: int) -> int:
        """Return the (largest) number of training batches for a number of training images.

        A dry run estimates the time from it; 0 for a defence that does not train.
        """


def within(accuracy: float, floor: float) -> bool:
    """Return whether an accuracy is at least a floor, apart from rounding.

    A loss of exactly the budget is within it, although the difference of two fractions is rounded.

    >>> 0.51 - 0.1 <= 0.41, within(0.41, 0.51 - 0.1), within(0.4, 0.51 - 0.1)
    (False, True, False)
    """
    return accuracy >= floor - _ROUNDING
