"""Data poisoning: attacks that train on data in which some images carry a fixed trigger.

Students that are distilled with clean images mostly do not inherit these backdoors, so the attacks
serve as controls.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.attacks.parts.steps import train_teacher
from robustkd.attacks.triggers.files import describe
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Trigger
from robustkd.core.validation import check_share


@dataclass(frozen=True)
class DirtyLabel:
    """Train a teacher on data in which some images carry a trigger and the label of the target.

    The target may be the next class of each image, as in the all-to-all attack of Gu et al.

    Sources: Gu et al. 2017, arXiv 1708.06733, with :class:`~robustkd.attacks.BadNets`; Chen et
    al. 2017, arXiv 1712.05526, with :class:`~robustkd.attacks.Blend`.

    Attributes:
        trigger: Trigger of the poisoned images.
        rate: Share of the training images that are poisoned, in (0, 1].
    """

    trigger: Trigger
    rate: float = 0.05

    def __post_init__(self) -> None:
        check_share(rate=self.rate)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        poisoned = Poisoned(data, self.trigger, target=target, rate=self.rate, seed=teaching.seed)
        return _trained(build, poisoned, self.trigger, self.rate, target, teaching)


@dataclass(frozen=True)
class CleanLabel:
    """Train a teacher on data in which a share of the target class carries a trigger.

    Source: Barni et al. 2019, arXiv 1902.11237, with :class:`~robustkd.attacks.SIG`. The default
    rate of 0.5 is within the range of 0.3 to 0.8 that the paper examines.

    Attributes:
        trigger: Trigger of the poisoned images.
        rate: Share of the target class's training images that are poisoned, in (0, 1].
    """

    trigger: Trigger
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_share(rate=self.rate)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        poisoned = Poisoned(
            data,
            self.trigger,
            target=target,
            rate=self.rate,
            clean_label=True,
            seed=teaching.seed,
        )
        return _trained(build, poisoned, self.trigger, self.rate, target, teaching)


def _trained(
    build: Build,
    poisoned: Poisoned,
    trigger: Trigger,
    rate: float,
    target: Target,
    teaching: Teaching,
) -> Backdoored:
    teacher = train_teacher(build, poisoned, teaching)
    record = {
        "trigger": describe(trigger),
        "rate": rate,
        "poisoned": int(poisoned.mask.sum()),
    }
    return Backdoored(teacher.eval(), trigger, target, record)
