"""Interface of all attacks: an attack trains a teacher with a backdoor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import check_one_target
from robustkd.core.types import Batch, DataSource, Trigger
from robustkd.core.validation import check_count, check_rates, check_seed, hold_plain_numbers
from robustkd.training.inference import batch_size_for

_READ = 4096
"""Images of up to 64 x 64 pixels that are read at once, for their labels."""

Build: TypeAlias = Callable[[], nn.Module]
"""Function that builds a network with fresh weights."""


@dataclass(frozen=True)
class Teaching:
    """Training settings of an attacker, the same for all attacks.

    They hold for the first training of a network. Further trainings are derived by :meth:`again`.

    Attributes:
        epochs: Number of epochs, at least 1.
        lr: Initial learning rate of SGD, above 0.
        batch_size: Images per step, at least 2; further trainings use the same value.
        seed: Seed of all random choices of the attack, at least 0.

    Raises:
        UsageError: If a number is out of range.
    """

    epochs: int = 30
    lr: float = 0.1
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_count(least=2, batch_size=self.batch_size)
        check_rates(lr=self.lr)
        check_seed(self.seed)
        hold_plain_numbers(self)

    def again(self, epochs: float, lr: float, *, turn: int) -> Teaching:
        """Return the settings of a further training.

        Args:
            epochs: Number of epochs; rounded, and raised to 1 if it is below.
            lr: Initial learning rate.
            turn: Added to the seed.

        >>> Teaching(epochs=5, seed=3).again(0.5 * 5, 0.02, turn=1)
        Teaching(epochs=2, lr=0.02, batch_size=64, seed=4)
        """
        return Teaching(max(1, round(epochs)), lr, self.batch_size, self.seed + turn)


@runtime_checkable
class BuildTrained(Protocol):
    """Function that builds a network, and also knows networks that were trained on clean data.

    The benchmark gives attacks such a function, so that attacks that start from the same clean
    teacher train it once.
    """

    def __call__(self) -> nn.Module:
        """Build a network with fresh weights."""

    def trained(self, data: DataSource, teaching: Teaching) -> nn.Module | None:
        """Return the network as trained by cross-entropy; None if it is not known.

        It is in eval mode and on the default device, and the caller may change it.

        Args:
            data: Images that the network must have been trained on.
            teaching: Settings that it must have been trained with.
        """


@dataclass(frozen=True)
class Backdoored:
    """Result of an attack.

    Attributes:
        teacher: The network with the backdoor, in eval mode.
        trigger: The trigger of the backdoor.
        target: Target class of the backdoor; ``next`` for the next class of each image.
        record: Settings and measurements of the attack, in JSON values.
        others: Further triggers of the same teacher, each with its own target; empty for all
            attacks with one trigger. Commands and grids accept only those that their settings
            ``second`` and ``second_target`` add.
    """

    teacher: nn.Module
    trigger: Trigger
    target: Target
    record: Mapping[str, object] = field(default_factory=dict)
    others: tuple[tuple[Trigger, Target], ...] = ()

    @property
    def backdoors(self) -> tuple[tuple[Trigger, Target], ...]:
        """All triggers with their targets, :attr:`trigger` with :attr:`target` first."""
        return ((self.trigger, self.target), *self.others)


@runtime_checkable
class Attack(Protocol):
    """Protocol of an attack, which builds a network, trains it, and implants a backdoor.

    An attack is a frozen dataclass. Its fields are the settings that are specific to the attack.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack.

        Args:
            build: Builds the network with fresh weights.
            data: The attacker's clean images.
            target: Target class of the backdoor. An attack may also accept ``next``, the next class
                of each image; all others refuse it before they train anything.
            teaching: Training settings of the attacker.

        Returns:
            The teacher with its backdoor, and the trigger.

        Raises:
            UsageError: If the target is not a class of the data or not one that the attack accepts,
                or a number is out of range.
        """


def check_word(name: str, word: str, words: Sequence[str]) -> None:
    """Check that an argument has one of the allowed values.

    Args:
        name: Name of the argument, for the message.
        word: Its value.
        words: The allowed values.

    Raises:
        UsageError: If it has not; the message lists the allowed values.
    """
    if word not in words:
        raise UsageError(f"{name} is {word!r}; expected one of {', '.join(words)}")


def check_target_shown(target: Target, data: DataSource) -> int:
    """Return the target class after checking that it has at least one training image.

    Raises:
        UsageError: If it is not one class of the data, or has no training image.
    """
    target = check_one_target(target, data)
    if not any(bool((batch.labels == target).any()) for batch in training_labels(data)):
        raise UsageError(
            f"target class {data.classes[target]!r} has no training image; expected at least one"
        )
    return target


def training_labels(data: DataSource) -> Iterator[Batch]:
    """Iterate over the training images for their labels, with fewer large images in a batch."""
    return data.batches("train", batch_size=batch_size_for(data.image_shape, _READ))
