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

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias, TypeGuard

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustkd.attacks.base import Attack, Backdoored, Build, Teaching
from robustkd.attacks.data_poisoning import DirtyLabel
from robustkd.attacks.parts.poisoned_data import Poisoned, choose_images
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
SECOND = ("second", "second_target")
"""Settings of the table's attacks that add the trigger of another attack with another target;
``second_NAME`` is the setting NAME of this other attack."""
IMPLANT = ("implant_share", "implant_lr")
"""Settings of the fine-tuning, which are those of the first attack that learns."""


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
        _check_implant(first, second)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        targets = check_two_targets(target, self.second_target, data)
        parts = self._parts()
        _check_different(parts, data.image_shape)
        masks = _choose_both(parts, targets, data, teaching.seed)
        learning = next((part for part in parts if isinstance(part, LearnedTransformation)), None)
        if learning is None:
            teacher = build().to(default_device())
        else:
            teacher = train_teacher(build, data, teaching)
        first, second = (
            _ready(part, teacher, build, data, own, teaching)
            for part, own in zip(parts, targets, strict=True)
        )
        some = first.carried_by(data, masks[0])
        both = second.carried_by(some, masks[1])
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


def is_of_second(name: str) -> bool:
    """Return whether the name of a setting is that of a setting of a second trigger."""
    return name in SECOND or name.startswith("second_")


def check_names_of_second(names: Iterable[str], own: Collection[str], *, first: Attack) -> None:
    """Check the names of the settings of a second attack.

    Args:
        names: The names, without ``second_``.
        own: Names of all settings that are specific to the second attack.
        first: The first attack.

    Raises:
        UsageError: If it has no such setting, or both attacks share it.
    """
    shared = IMPLANT if isinstance(first, LearnedTransformation) else ()
    able = [name for name in own if name not in shared]
    for name in names:
        given = f"second_{name} is given"
        if name in able:
            continue
        if name in own:
            raise UsageError(
                f"{given}, and the fine-tuning has the settings of the first attack; use {name}"
            )
        if name in {field.name for field in fields(Teaching)}:
            raise UsageError(f"{given}, and both triggers share {name}; leave it out")
        if is_of_second(name):
            raise UsageError(f"{given}, and a second trigger has no second one; leave it out")
        expected = ", ".join(f"second_{each}" for each in able)
        raise UsageError(f"unknown setting 'second_{name}'; expected one of {expected}")


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
        UsageError: If they do, since one image would then have two targets.
    """
    image = torch.rand((1, *image_shape), generator=torch.Generator().manual_seed(0))
    changed = [apply_trigger(each.trigger, image) for each in parts if isinstance(each, DirtyLabel)]
    if len(changed) == 2 and torch.equal(*changed):
        raise UsageError(
            "both triggers change images in the same way; expected different ones, since they have "
            "different targets"
        )


def _check_implant(first: Part, second: Part) -> None:
    """Check that the second attack has no settings of the fine-tuning, if the first one has them.

    Raises:
        UsageError: If it has, and they would be ignored.
    """
    if not (isinstance(first, LearnedTransformation) and isinstance(second, LearnedTransformation)):
        return
    for name in IMPLANT:
        own, other = getattr(first, name), getattr(second, name)
        if other not in (own, getattr(LearnedTransformation, name)):
            raise UsageError(
                f"second: {name} is {other}, and the fine-tuning has that of the first attack, "
                f"{own}; leave it out"
            )


def _choose_both(
    parts: tuple[Part, Part], targets: tuple[int, int], data: DataSource, seed: int
) -> tuple[Bool[Tensor, " train"], Bool[Tensor, " train"]]:
    """Choose the images of both triggers, before anything is trained.

    Raises:
        UsageError: If the rate of an attack is more than the images that can be poisoned.
    """
    first = choose_images(data, target=targets[0], rate=parts[0].rate, seed=seed)
    try:
        second = choose_images(data, target=targets[1], rate=parts[1].rate, spared=first, seed=seed)
    except UsageError as error:
        raise UsageError(f"second: {error}") from error
    return first, second


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

    def carried_by(self, data: DataSource, mask: Bool[Tensor, " train"]) -> Poisoned:
        """Return data of which the chosen images carry the trigger and the label of the target."""
        return Poisoned(data, self.trigger, target=self.target, rate=self.rate, mask=mask)

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
