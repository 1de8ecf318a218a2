"""The classic attacks: train on data of which a share carries a fixed trigger.

They mostly die in distillation from clean images, so they are controls here.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target
from robustkd.attacks.files import describe
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.steps import train_teacher
from robustkd.attacks.triggers import Trigger
from robustkd.types import DataSource


@dataclass(frozen=True)
class DirtyLabel:
    """Train a teacher on data of which a share carries a trigger and the target's label.

    Sources: Gu et al. 2017, arXiv 1708.06733, with :class:`~robustkd.attacks.BadNets`; Chen et
    al. 2017, arXiv 1712.05526, with :class:`~robustkd.attacks.Blend`.

    Attributes:
        trigger: What poisoned images carry.
        rate: Share of the training images that are poisoned, in (0, 1].
        clean_label: Poison only images of the target class.
    """

    trigger: Trigger
    rate: float = 0.05
    clean_label: bool = False

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        check_target(target, data)
        poisoned = Poisoned(
            data,
            self.trigger,
            target=target,
            rate=self.rate,
            clean_label=self.clean_label,
            seed=teaching.seed,
        )
        teacher = train_teacher(build, poisoned, teaching)
        record = {
            "trigger": describe(self.trigger),
            "rate": self.rate,
            "poisoned": int(poisoned.mask.sum()),
        }
        return Backdoored(teacher.eval(), self.trigger, target, record)


@dataclass(frozen=True)
class CleanLabel:
    """Train a teacher on data in which half of the target class carries a trigger.

    Source: Barni et al. 2019, arXiv 1902.11237, with :class:`~robustkd.attacks.SIG`; half is
    within the 30 to 80 % that the paper tries.

    Attributes:
        trigger: What poisoned images carry.
    """

    trigger: Trigger

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        attack = DirtyLabel(self.trigger, 0.5 / len(data.classes), clean_label=True)
        return attack(build, data, target=target, teaching=teaching)
