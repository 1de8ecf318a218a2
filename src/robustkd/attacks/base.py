"""What every attack is: a recipe for a teacher that obeys a trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from robustkd.attacks.triggers import Trigger
from robustkd.errors import UsageError
from robustkd.types import DataSource


@dataclass(frozen=True)
class Backdoored:
    """An attack's result.

    Attributes:
        teacher: The network, in eval mode.
        trigger: What makes it obey.
        target: The class that it then names.
        record: How it was made, in JSON values.
    """

    teacher: nn.Module
    trigger: Trigger
    target: int
    record: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """Builds a network, trains it on the attacker's data, and implants a backdoor."""

    def __call__(
        self,
        build: Callable[[], nn.Module],
        data: DataSource,
        *,
        target: int,
        epochs: int,
        lr: float,
        batch_size: int,
        seed: int,
    ) -> Backdoored:
        """Run the attack.

        Args:
            build: Makes the network with fresh weights.
            data: The attacker's clean images.
            target: Class that triggered images shall get.
            epochs: Passes over the data for the teacher's own training.
            lr: Learning rate of that training.
            batch_size: Images a step.
            seed: Of everything random.
        """


def check_target(target: int, data: DataSource) -> None:
    """Refuse a target that is no class of the data.

    Raises:
        UsageError: Naming the classes there are.
    """
    if not 0 <= target < len(data.classes):
        raise UsageError(f"target class is {target}; expected 0 to {len(data.classes) - 1}")
