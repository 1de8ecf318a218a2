"""Interface of defences that act within the training of a student."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from robustkd.core.types import Images


class Safeguard(nn.Module, ABC):
    """Part of a training that changes the student's weights or adds a loss.

    Its state is in ``state_dict``, so that an interrupted training can be continued. Since a
    safeguard acts at certain times, the last epoch of the training is kept, and not the one with
    the highest validation accuracy.
    """

    @abstractmethod
    def begin(self, steps: int) -> None:
        """Start a training of this number of steps."""

    @abstractmethod
    def prepare(self, student: nn.Module) -> None:
        """Change the weights before the forward pass of a step, if it is time."""

    @abstractmethod
    def loss(self, student: nn.Module, images: Images) -> Tensor | None:
        """Return a scalar that is added to the loss of a batch; None for none."""

    @abstractmethod
    def advance(self) -> None:
        """Count a step, after the backward pass."""
