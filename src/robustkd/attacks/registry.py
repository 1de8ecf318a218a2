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
from robustkd.attacks.parts.made import check_made
from robustkd.attacks.parts.trigger_families import TRIGGER_FAMILIES
from robustkd.attacks.scar import OSCAR, SCAR
from robustkd.attacks.transformation import AdaptiveTransformation, LearnedTransformation
from robustkd.attacks.triggers.patterns import SIG, BadNets, Blend
from robustkd.attacks.two_triggers import (
    SECOND,
    TwoTriggers,
    can_be_combined,
    check_distinct,
    check_names_of_second,
    check_two_targets,
    is_of_second,
)
from robustkd.attacks.wanet import WaNet
from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.targets import NEXT, Target
from robustkd.core.triggers import apply_trigger, check_one_target, check_target
from robustkd.core.types import DataSource, Settings, Trigger
from robustkd.core.validation import check_count
from robustkd.training.sources import check_source

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

    def __post_init__(self) -> None:
        if isinstance(self.attack, TwoTriggers):
            raise UsageError(
                "an attack of the table has one trigger, and TwoTriggers has two; add a row for "
                "each of them, and combine them with the settings second and second_target"
            )
        for name in SECOND:
            if name in self.own:
                raise UsageError(
                    f"{type(self.attack).__name__} has a setting {name}, which adds another "
                    "trigger; use another name"
                )

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of all keyword arguments of a call.

        >>> ATTACKS["sig"].arguments
        ('target', 'epochs', 'lr', 'batch_size', 'seed', 'rate')
        """
        further = SECOND if can_be_combined(self.attack) else ()
        return ("target", *_TEACHING, *self.own, *further)

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the settings that are specific to the attack."""
        # A field without a default, such as a fixed trigger or a family, defines the attack and is
        # no setting.
        return tuple(field.name for field in fields(self.attack) if field.default is not MISSING)

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
                With ``second`` and ``second_target``, the teacher has two triggers, each with its
                own target class, and ``second_NAME`` is the setting NAME of the second attack.

        Returns:
            The teacher with its backdoor, and the trigger.

        Raises:
            UsageError: If the target is not a class of the data or not one that the attack accepts,
                a setting is unknown, of the wrong type or out of range, ``data`` is no source, or
                the attack does not return what :func:`check_made` expects.
            InputError: If pixels are not in [0, 1], or labels are no classes.
        """
        teaching = {name: settings.pop(name) for name in _TEACHING if name in settings}
        self.check(settings)
        check_source(data)
        if not self.next_class:
            target = check_one_target(target, data)
        made = self.configured(settings)(build, data, target=target, teaching=Teaching(**teaching))
        kind, shape = type(self.attack).__name__, data.image_shape
        return check_made(made, attack=kind, target=target, image_shape=shape)

    def check(self, settings: Settings) -> None:
        """Check the settings that are specific to the attack.

        Raises:
            UsageError: If a setting is unknown, of the wrong type or out of range, or the attack
                cannot have a second trigger that the settings ask for; the message names the first
                one.
        """
        own, of_second = self._parted(settings)
        annotated = {field.name: str(field.type) for field in fields(self.attack)}
        for name, value in own.items():
            if name not in self.own:
                expected = ", ".join(self.arguments)
                raise UsageError(f"unknown setting {name!r}; expected one of {expected}")
            default = getattr(self.attack, name)
            unset = annotated[name].removesuffix(" | None")
            kind = unset if default is None else type(default).__name__
            wanted, words = _KINDS.get(kind, ((object,), "a string"))
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise UsageError(f"{name} is {value!r}; expected {words}")
        if of_second:
            self._check_second(of_second)
        self.configured(settings)

    def configured(self, settings: Settings) -> Attack:
        """Return the attack with settings that :meth:`check` accepts."""
        own, of_second = self._parted(settings)
        attack = replace(self.attack, **own)
        if not of_second:
            return attack
        second = replace(find(of_second["second"]).attack, **_further(of_second))
        return TwoTriggers(attack, second, of_second["second_target"])

    def parts(self, settings: Settings) -> dict[str, Attack]:
        """Return the attacks of all triggers, by the beginning of messages about each.

        Args:
            settings: Checked settings of the attack, and of its training.
        """
        attack = self.configured(
            {name: value for name, value in settings.items() if name not in _TEACHING}
        )
        if isinstance(attack, TwoTriggers):
            return {"": attack.first, "second: ": attack.second}
        return {"": attack}

    def is_of_second(self, name: str) -> bool:
        """Return whether a setting is about a second trigger, and none of the attack itself."""
        return name not in self.own and is_of_second(name)

    def _parted(self, settings: Settings) -> tuple[Settings, Settings]:
        """Return the settings of the attack itself, and those of its second trigger."""
        of_second = {name: settings[name] for name in settings if self.is_of_second(name)}
        return {name: settings[name] for name in settings if name not in of_second}, of_second

    def _check_second(self, settings: Settings) -> None:
        """Check the settings of a second trigger."""
        if not can_be_combined(self.attack):
            raise UsageError(f"this attack cannot have a second trigger; use one of {_able()}")
        for name in SECOND:
            if name not in settings:
                given = next(iter(settings))
                raise UsageError(f"{given} is given and {name} is not; add it, or leave both out")
        row = find(str(settings["second"]))
        if not can_be_second(row):
            raise UsageError(
                f"second is {settings['second']!r}, which cannot be a second trigger; use one of "
                f"{_able(second=True)}"
            )
        if row is self:
            raise UsageError(
                f"second is {settings['second']!r}, as the attack itself; expected another one"
            )
        check_count(least=0, second_target=settings["second_target"])
        further = _further(settings)
        check_names_of_second(further, row.own, first=self.attack)
        try:
            row.check(further)
        except UsageError as error:
            raise UsageError(f"second: {error}") from error

    def try_trigger(self, settings: Settings, image_shape: tuple[int, int, int]) -> None:
        """Apply the trigger to one grey image, if its form is known before the training.

        Args:
            settings: Settings of the attack and of its training.
            image_shape: Channels, height and width.

        Raises:
            UsageError: If the trigger does not fit such images.
        """
        for each in self.parts(settings).values():
            trigger: object = getattr(each, "trigger", None)
            if isinstance(each, _KnownForm):
                trigger = each.example(image_shape)
            if callable(trigger):
                apply_trigger(trigger, torch.full((1, *image_shape), 0.5))


def _further(of_second: Settings) -> Settings:
    """Return the settings of the second attack itself, without ``second_`` in their names."""
    own = {name: value for name, value in of_second.items() if name not in SECOND}
    return {name.removeprefix("second_"): value for name, value in own.items()}


def can_be_second(row: AttackRow) -> bool:
    """Return whether the trigger of an attack can be the second of another one.

    An attack that takes functions, such as an adaptive one, can only be the first.
    """
    return can_be_combined(row.attack) and not row.takes


def _able(*, second: bool = False) -> str:
    """Return the names of the attacks that can have a second trigger, or can be the second."""
    chosen = can_be_second if second else lambda row: can_be_combined(row.attack)
    return ", ".join(name for name, row in ATTACKS.items() if chosen(row))


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
            f"knows the hardening: as {family}, learned on a hardened student as well",
            ("train_surrogate",),
            next_class=True,
        )
        for family in TRANSFORMATIONS
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


def check_accepts(name: str, target: Target, settings: Settings | None = None) -> None:
    """Check that an attack accepts a target, before its data is known.

    Args:
        name: Name of the attack.
        target: The target.
        settings: Checked settings of the attack, for the target of a second trigger; None for none.

    Raises:
        UsageError: If the attack is unknown, the target is the next class of each image and the
            attack has one target class, or two triggers have the same target; the message names
            the attacks that accept the next class.
    """
    if not find(name).next_class and target == NEXT:
        able = ", ".join(known for known, row in ATTACKS.items() if row.next_class)
        raise UsageError(
            f"target is {NEXT}, and attack {name!r} has one target class; give its number, or use "
            f"one of {able}"
        )
    if settings and "second_target" in settings:
        check_distinct(target, settings["second_target"])


def check_targets(target: Target, settings: Settings, data: DataSource) -> None:
    """Check that the target of an attack, and that of its second trigger if any, fit the data.

    Raises:
        UsageError: If one is not the index of a class, or both are equal.
    """
    if "second_target" in settings:
        check_two_targets(target, settings["second_target"], data)
    else:
        check_target(target, data)
