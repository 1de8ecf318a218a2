"""Two triggers with two targets: one teacher has two backdoors, each with its own target class.

The attacker makes two triggers of different kinds. Learned ones are learned on the same clean
teacher, each towards its own target. Then the teacher is trained once, on data of which one share
carries the first trigger with the label of its target, and another share the second trigger with
the label of the other target. No image carries both.

Source: the parallel attack of Li et al. 2024, arXiv 2401.15295, in which several attackers poison
non-overlapping parts of one data set, each with a trigger of its own. Differences: there are two
triggers; each has one target class, which differs from the other's; triggers may be learned; and
if one is learned, the backdoors are implanted by fine-tuning a clean teacher, see
:mod:`robustkd.attacks.transformation`, in place of a training from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias, TypeGuard

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustkd.attacks.base import Attack, Backdoored, Build, Teaching
from robustkd.attacks.data_poisoning import DirtyLabel
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.attacks.parts.steps import train_teacher
from robustkd.attacks.transformation import LearnedTransformation
from robustkd.attacks.triggers.files import describe
from robustkd.core.devices import default_device
from robustkd.core.errors import UsageError
from robustkd.core.targets import NEXT, Target
from robustkd.core.triggers import apply_trigger, check_one_target
from robustkd.core.types import DataSource, Trigger
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

Part: TypeAlias = DirtyLabel | LearnedTransformation
"""Attack that can be combined with another: its poisoned images need no training of their own."""


@dataclass(frozen=True)
class TwoTriggers:
    """Implant two backdoors with different target classes in one teacher.

    If both triggers are fixed, the teacher is trained on poisoned data from the start. If one is
    learned, a clean teacher is trained first and fine-tuned afterwards, with the settings of the
    first attack that learns.

    Attributes:
        first: Attack that makes the first trigger, a :class:`DirtyLabel` or a
            :class:`LearnedTransformation`; its target is that of the call.
        second: Such an attack that makes the second trigger. The rates of both attacks are shares
            of the training images, and together at most 1.
        second_target: Target class of the second trigger.
    """

    first: Attack
    second: Attack
    second_target: int

    def __post_init__(self) -> None:
        first, second = self._parts()
        if first.rate + second.rate > 1:
            raise UsageError(
                f"the rates of the two triggers are {first.rate} and {second.rate}; expected at "
                "most 1 together, since no image carries both"
            )

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        targets = check_two_targets(target, self.second_target, data)
        parts = self._parts()
        _check_different(parts, data.image_shape)
        learning = next((part for part in parts if isinstance(part, LearnedTransformation)), None)
        if learning is None:
            teacher = build().to(default_device())
        else:
            teacher = train_teacher(build, data, teaching)
        first, second = (
            _ready(part, teacher, build, data, own, teaching)
            for part, own in zip(parts, targets, strict=True)
        )
        some = first.carried_by(data, teaching.seed)
        both = second.carried_by(some, teaching.seed, spared=some.mask)
        if learning is None:
            fit(Supervised(teacher), both, **asdict(teaching), label="train the teacher")
        else:
            learning.implant(teacher, both, teaching)
        record = {
            "first": first.record(some),
            "second": second.record(both),
            "poisoned": int((some.mask | both.mask).sum()),
        }
        others = ((second.trigger, second.target),)
        return Backdoored(teacher.eval(), first.trigger, first.target, record, others)

    def _parts(self) -> tuple[Part, Part]:
        """Return both attacks, after checking that they can be combined."""
        return _part("first", self.first), _part("second", self.second)


def _part(name: str, attack: Attack) -> Part:
    if not can_be_combined(attack):
        raise UsageError(
            f"{name} is of type {type(attack).__name__}; expected DirtyLabel or "
            "LearnedTransformation, since other attacks have a training of their own"
        )
    return attack


def can_be_combined(attack: object) -> TypeGuard[Part]:
    """Return whether the trigger of an attack can be one of two."""
    return isinstance(attack, DirtyLabel | LearnedTransformation)


def check_two_targets(target: Target, second: Target, data: DataSource) -> tuple[int, int]:
    """Return the targets of two triggers, after checking them.

    Raises:
        UsageError: If they are equal, or one of them is not the index of a class of the data.
    """
    check_distinct(target, second)
    try:
        other = check_one_target(second, data)
    except UsageError as error:
        raise UsageError(f"second_target: {error}") from error
    return check_one_target(target, data), other


def check_distinct(target: Target, second: Target) -> None:
    """Check that two targets are different, and each is one class, before the data is known.

    Raises:
        UsageError: If they are not.
    """
    if NEXT in (target, second):
        raise UsageError(
            f"{'target' if target == NEXT else 'second_target'} is {NEXT}, and each of two "
            "triggers has one target class; give the number of a class"
        )
    if target == second:
        raise UsageError(
            f"target and second_target are both {target}; expected two different classes"
        )


def _check_different(parts: tuple[Part, Part], image_shape: tuple[int, int, int]) -> None:
    """Check that two fixed triggers do not change an image in the same way.

    Raises:
        UsageError: If they do, since an image with both targets could be classified as one alone.
    """
    image = torch.rand((1, *image_shape), generator=torch.Generator().manual_seed(0))
    changed = [apply_trigger(each.trigger, image) for each in parts if isinstance(each, DirtyLabel)]
    if len(changed) == 2 and torch.equal(*changed):
        raise UsageError(
            "both triggers change images in the same way; expected different ones, since they have "
            "different targets"
        )


@dataclass(frozen=True)
class _Ready:
    """A trigger that is ready to be implanted: it is fixed, or has been learned.

    Attributes:
        trigger: The trigger.
        target: Its target class.
        rate: Share of the training images that carry it.
        facts: Facts about it, in JSON values.
    """

    trigger: Trigger
    target: int
    rate: float
    facts: Mapping[str, object]

    def carried_by(
        self, data: DataSource, seed: int, *, spared: Bool[Tensor, " train"] | None = None
    ) -> Poisoned:
        """Return data of which a share carries the trigger and the label of the target."""
        return Poisoned(
            data, self.trigger, target=self.target, rate=self.rate, spared=spared, seed=seed
        )

    def record(self, poisoned: Poisoned) -> dict[str, object]:
        """Return facts about the trigger and the data that carry it."""
        count = int(poisoned.mask.sum())
        return {**self.facts, "target": self.target, "rate": self.rate, "poisoned": count}


def _ready(
    part: Part,
    teacher: nn.Module,
    build: Build,
    data: DataSource,
    target: int,
    teaching: Teaching,
) -> _Ready:
    """Return the trigger of an attack, learned on the teacher unless it is fixed."""
    if isinstance(part, LearnedTransformation):
        trigger, facts = part.learn(teacher, build, data, target=target, teaching=teaching)
        return _Ready(trigger, target, part.rate, facts)
    return _Ready(part.trigger, target, part.rate, {"trigger": describe(part.trigger)})
