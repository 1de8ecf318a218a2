"""The interface of all defences that clean a network."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from robustkd.core.types import DataSource


@dataclass(frozen=True)
class Defended:
    """A cleaned network and the record of its cleaning.

    Attributes:
        network: A new network in eval mode; the one that was given is unchanged.
        record: What was done, in JSON values. ``accuracy_before`` and ``accuracy_after`` are
            always there: clean validation accuracy, fractions in [0, 1].
    """

    network: nn.Module
    record: dict[str, object] = field(default_factory=dict)


@runtime_checkable
class Defence(Protocol):
    """Cleans a teacher before distillation, or a finished student.

    A defence is a frozen dataclass whose fields are its hyper-parameters. It receives clean images
    and a network: neither a trigger, nor a target class, nor which images were poisoned.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy of the network.

        Args:
            network: Classifier of images in [0, 1], N x C x H x W; it is not changed.
            clean: Clean images: weights learn on ``train``, thresholds are chosen by accuracy on
                ``validation``, which needs labels. Where a training image has no label, the class
                that ``network`` gives it is used.
            seed: Of order, augmentation and initial values, at least 0.

        Raises:
            UsageError: If the network lacks what the defence works on, such as BatchNorm.
            TrainingError: If weights stop being finite.
        """
