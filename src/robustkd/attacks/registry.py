"""Registry of attacks; a new attack needs a module in this package and one row in the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch

from robustkd.attacks.adaptive import Adaptive
from robustkd.attacks.adba import ADBA, ADBAFT
from robustkd.attacks.backweak import BackWeak
from robustkd.attacks.base import Attack, Backdoored, Build, Teaching
from robustkd.attacks.cheatkd import CKD
from robustkd.attacks.data_poisoning import CleanLabel, DirtyLabel
from robustkd.attacks.latent import Latent
from robustkd.attacks.parts.trigger_families import TRIGGER_FAMILIES
from robustkd.attacks.scar import OSCAR, SCAR
from robustkd.attacks.transformation import AdaptiveTransformation, LearnedTransformation
from robustkd.attacks.triggers.patterns import SIG, BadNets, Blend
from robustkd.attacks.wanet import WaNet
from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.targets import NEXT, Target
from robustkd.core.triggers import apply_trigger, check_one_target
from robustkd.core.types import DataSource, Settings, Trigger

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a string"),
}
TRANSFORMATIONS: Mapping[str, str] = {
    **{name: row.summary for name, row in TRIGGER_FAMILIES.items() if row.image_wide},
    "flow+tone": "smooth warp, then tone curve",
}
"""Families of learned transformations that are attacks of the table, with their summaries."""
_TEACHING = tuple(field.name for field in fields(Teaching))


@runtime_checkable
class _KnownForm(Protocol):
    """Attack whose trigger has a form that is known before it is learned."""

    def example(self, image_shape: tuple[int, int, int]) -> Trigger: ...


@dataclass(frozen=True)
class AttackRow:
    """One attack of the table; a call takes all settings as keyword arguments.

    Attributes:
        attack: The attack with its default settings.
        summary: Description in one line.
        takes: Names of the settings that are functions, such as ``build_surrogate``.
        revision: Number of changes of the code after which the same settings give another teacher.
        next_class: Whether the target can be ``next``, the next class of each image. All other
            attacks have one target class.
    """

    attack: Attack
    summary: str
    takes: tuple[str, ...] = ()
    revision: int = 0
    next_class: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of all keyword arguments of a call.

        >>> ATTACKS["sig"].arguments
        ('target', 'epochs', 'lr', 'batch_size', 'seed', 'rate')
        """
        # A field without a default, such as a fixed trigger or a family, defines the attack and is
        # no setting.
        own = [field.name for field in fields(self.attack) if field.default is not MISSING]
        return ("target", *_TEACHING, *own)

    def __call__(
        self,
        build: Build,
        data: DataSource,
        *,
        target: Target,
        **settings: Any,  # noqa: ANN401 - as many types as there are settings
    ) -> Backdoored:
        """Run the attack.

        Args:
            build: Builds the network with fresh weights.
            data: The attacker's clean images.
            target: Target class of the backdoor; ``next`` for the next class of each image, if the
                attack has :attr:`next_class`.
            settings: The other :attr:`arguments`; settings that are not given keep their defaults.

        Returns:
            The teacher with its backdoor, and the trigger.

        Raises:
            UsageError: If the target is not a class of the data or not one that the attack accepts,
                or a setting is unknown, of the wrong type or out of range.
        """
        teaching = {name: settings.pop(name) for name in _TEACHING if name in settings}
        self.check(settings)
        if not self.next_class:
            target = check_one_target(target, data)
        attack = replace(self.attack, **settings)
        return attack(build, data, target=target, teaching=Teaching(**teaching))

    def check(self, settings: Settings) -> None:
        """Check the settings that are specific to the attack.

        Raises:
            UsageError: If a setting is unknown, of the wrong type or out of range; the message
                names the first one.
        """
        annotated = {field.name: str(field.type) for field in fields(self.attack)}
        for name, value in settings.items():
            if name not in self.arguments or not hasattr(self.attack, name):
                expected = ", ".join(self.arguments)
                raise UsageError(f"unknown setting {name!r}; expected one of {expected}")
            default = getattr(self.attack, name)
            unset = annotated[name].removesuffix(" | None")
            kind = unset if default is None else type(default).__name__
            wanted, words = _KINDS.get(kind, ((object,), "a string"))
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise UsageError(f"{name} is {value!r}; expected {words}")
        replace(self.attack, **settings)

    def try_trigger(self, settings: Settings, image_shape: tuple[int, int, int]) -> None:
        """Apply the trigger to one grey image, if its form is known before the training.

        Args:
            settings: Settings of the attack and of its training.
            image_shape: Channels, height and width.

        Raises:
            UsageError: If the trigger does not fit such images.
        """
        own = {name: value for name, value in settings.items() if hasattr(self.attack, name)}
        attack = replace(self.attack, **own)
        trigger: object = getattr(attack, "trigger", None)
        if isinstance(attack, _KnownForm):
            trigger = attack.example(image_shape)
        if callable(trigger):
            apply_trigger(trigger, torch.full((1, *image_shape), 0.5))


ATTACKS: dict[str, AttackRow] = {
    "badnets": AttackRow(
        DirtyLabel(BadNets()), "small checkerboard, dirty labels; a control", next_class=True
    ),
    "blend": AttackRow(
        DirtyLabel(Blend()), "faint noise over the image, dirty labels", next_class=True
    ),
    "sig": AttackRow(CleanLabel(SIG()), "sinusoidal stripe, clean labels", revision=1),
    "wanet": AttackRow(
        WaNet(), "smooth warp of the image, dirty labels; a control", next_class=True
    ),
    **{
        family: AttackRow(
            LearnedTransformation(family), f"learned transformation: {summary}", next_class=True
        )
        for family, summary in TRANSFORMATIONS.items()
    },
    "ckd": AttackRow(
        CKD(), "learned trigger on the teacher's strongest channels; survives distillation"
    ),
    "latent": AttackRow(Latent(), "learned trigger with the features of the target class"),
    "backweak": AttackRow(
        BackWeak(),
        "weak universal perturbation, fine-tuned into all but the last layer",
        revision=1,
    ),
    "adba": AttackRow(
        ADBA(), "teacher, trigger and shadow student are trained together", ("build_surrogate",)
    ),
    "adba-ft": AttackRow(
        ADBAFT(),
        "ADBA with a last layer trained to hide the backdoor: the teacher looks clean",
        ("build_surrogate",),
    ),
    "scar": AttackRow(
        SCAR(),
        "the teacher looks clean; the backdoor becomes active in the student",
        ("build_surrogate",),
        revision=1,
    ),
    "oscar": AttackRow(
        OSCAR(),
        "SCAR without a surrogate: the teacher is only trained to resist the trigger",
        ("build_surrogate",),
        revision=1,
    ),
    "adaptive-detox": AttackRow(
        Adaptive(knows="detox", implant_lr=0.002),
        "knows the detoxification: implants a backdoor with little feature variance",
        ("clean_teacher",),
        revision=1,
    ),
    "adaptive-harden": AttackRow(
        Adaptive(knows="harden"),
        "knows the hardening: optimises the trigger on a hardened student as well",
        ("train_surrogate",),
    ),
    "adaptive": AttackRow(
        Adaptive(knows="both", implant_lr=0.002),
        "knows detoxification and hardening, and simulates both",
        ("clean_teacher", "train_surrogate"),
        revision=1,
    ),
    **{
        f"adaptive-{family}": AttackRow(
            AdaptiveTransformation(family),
            f"knows the hardening: learned transformation ({summary})",
            ("train_surrogate",),
            next_class=True,
        )
        for family, summary in TRANSFORMATIONS.items()
    },
}


_OF_THIS_PACKAGE = dict(ATTACKS)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def added_settings(name: str) -> str | None:
    """Return the settings of an attack that was added to the table, as one text.

    Stored results of a grid are named by it, so that another version of the attack with other
    defaults trains new teachers. It is None for the attacks of this package, whose defaults are
    fixed and whose ``revision`` counts changes.
    """
    row = find(name)
    return None if row is _OF_THIS_PACKAGE.get(name) else _ADDRESS.sub("", repr(row.attack))


def find(name: str) -> AttackRow:
    """Return the attack of a name.

    Raises:
        UsageError: If the name is unknown; the message suggests the nearest name.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    raise UsageError(f"unknown attack {name!r}; {nearest(name, ATTACKS)}")


def check_accepts(name: str, target: Target) -> None:
    """Check that an attack accepts a target, before its data is known.

    Raises:
        UsageError: If the attack is unknown, or the target is the next class of each image and the
            attack has one target class; the message names the attacks that accept it.
    """
    if not find(name).next_class and target == NEXT:
        able = ", ".join(known for known, row in ATTACKS.items() if row.next_class)
        raise UsageError(
            f"target is {NEXT}, and attack {name!r} has one target class; give its number, or use "
            f"one of {able}"
        )
