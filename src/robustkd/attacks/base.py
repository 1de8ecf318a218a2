"""The interface of attacks: a recipe for a teacher with a backdoor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Trigger

Build: TypeAlias = Callable[[], nn.Module]
"""Makes a network with fresh weights."""


@dataclass(frozen=True)
class Teaching:
    """How an attacker trains, whatever the attack: what its first training of a network takes.

    Attributes:
        epochs: Passes over the data, at least 1.
        lr: Learning rate of SGD at the start, above 0.
        batch_size: Images a step, in all further trainings as well.
        seed: Of everything random in the attack, at least 0.
    """

    epochs: int = 30
    lr: float = 0.1
    batch_size: int = 64
    seed: int = 0

    def again(self, epochs: float, lr: float, *, turn: int) -> Teaching:
        """Of a further training: its epochs are rounded, at least 1, and the seed goes on by turn.

        >>> Teaching(epochs=5, seed=3).again(0.5 * 5, 0.02, turn=1)
        Teaching(epochs=2, lr=0.02, batch_size=64, seed=4)
        """
        return Teaching(max(1, round(epochs)), lr, self.batch_size, self.seed + turn)


@dataclass(frozen=True)
class Backdoored:
    """An attack's result.

    Attributes:
        teacher: The network, in eval mode.
        trigger: The change of an image that activates the backdoor.
        target: The class that it then names.
        record: How it was made, in JSON values.
    """

    teacher: nn.Module
    trigger: Trigger
    target: int
    record: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """Builds a network, trains it on the attacker's data, and implants a backdoor.

    An attack is a frozen dataclass: its fields are the settings that no other attack need have.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack.

        Args:
            build: Makes the network with fresh weights.
            data: The attacker's clean images.
            target: Class that triggered images are sent to.
            teaching: How the attacker trains.

        Raises:
            UsageError: If the target is no class of the data, or a number is out of range.
        """


def check_word(name: str, word: str, words: Sequence[str]) -> None:
    """Refuse a word that is none of those there are.

    Raises:
        UsageError: Naming them.
    """
    if word not in words:
        raise UsageError(f"{name} is {word!r}; expected {', '.join(words)}")


def check_target_shown(target: int, data: DataSource) -> None:
    """Refuse a target that is no class of the data, or of which no training image is.

    Raises:
        UsageError: Saying which.
    """
    check_target(target, data)
    batches = data.batches("train", batch_size=4096)
    if not any(bool((batch.labels == target).any()) for batch in batches):
        raise UsageError(f"no training image is of the target class, {data.classes[target]!r}")


def check_target(target: int, data: DataSource) -> None:
    """Refuse a target that is no class of the data.

    Raises:
        UsageError: Naming the classes there are.
    """
    if not 0 <= target < len(data.classes):
        raise UsageError(f"target class is {target}; expected 0 to {len(data.classes) - 1}")
