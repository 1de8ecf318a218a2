"""The table of attacks: a new one is a file beside this and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from robustkd.attacks.adaptive import Adaptive
from robustkd.attacks.adba import ADBA, ADBAFT
from robustkd.attacks.backweak import BackWeak
from robustkd.attacks.base import Attack, Backdoored, Build, Teaching
from robustkd.attacks.cheatkd import CKD
from robustkd.attacks.data_poisoning import CleanLabel, DirtyLabel
from robustkd.attacks.latent import Latent
from robustkd.attacks.parts.trigger_families import TRIGGER_FAMILIES
from robustkd.attacks.scar import OSCAR, SCAR
from robustkd.attacks.transformation import LearnedTransformation
from robustkd.attacks.triggers.patterns import SIG, BadNets, Blend
from robustkd.attacks.wanet import WaNet
from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.types import DataSource

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a word"),
}
TRANSFORMATIONS: Mapping[str, str] = {
    **{name: row.summary for name, row in TRIGGER_FAMILIES.items() if row.image_wide},
    "flow+tone": "smooth warp, then tone curve",
}
"""Learned transformations that the table of attacks has, by family."""
_TEACHING = tuple(field.name for field in fields(Teaching))


@dataclass(frozen=True)
class Row:
    """One attack of the table, to be called with all its settings by their names alone.

    Attributes:
        attack: The attack with its defaults.
        summary: One line on it.
        takes: What of the attacker's own it can be given.
        revision: Counts the changes after which the same settings make another teacher.
    """

    attack: Attack
    summary: str
    takes: tuple[str, ...] = ()
    revision: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of all arguments of a call, beside the network and the data.

        >>> ATTACKS["sig"].arguments
        ('target', 'epochs', 'lr', 'batch_size', 'seed', 'rate')
        """
        # A field without a default, such as a fixed trigger, makes the attack what it is.
        own = [field.name for field in fields(self.attack) if field.default is not MISSING]
        return ("target", *_TEACHING, *own)

    def __call__(
        self,
        build: Build,
        data: DataSource,
        *,
        target: int,
        **settings: Any,  # noqa: ANN401 - as many types as there are settings
    ) -> Backdoored:
        """Run the attack.

        Args:
            build: Makes the network with fresh weights.
            data: The attacker's clean images.
            target: Class that triggered images are sent to.
            settings: The other :attr:`arguments`; what is not given keeps its default.

        Raises:
            UsageError: If the target is no class of the data, or a setting is unknown, of the
                wrong type or out of range.
        """
        teaching = {name: settings.pop(name) for name in _TEACHING if name in settings}
        self.check(settings)
        attack = replace(self.attack, **settings)
        return attack(build, data, target=target, teaching=Teaching(**teaching))

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings of the attack's own that it does not have or that are wrong.

        Raises:
            UsageError: Naming the first.
        """
        annotated = {field.name: str(field.type) for field in fields(self.attack)}
        for name, value in settings.items():
            if name not in self.arguments or not hasattr(self.attack, name):
                expected = ", ".join(self.arguments)
                raise UsageError(f"unknown setting {name!r}; expected one of {expected}")
            default = getattr(self.attack, name)
            unset = annotated[name].removesuffix(" | None")
            kind = unset if default is None else type(default).__name__
            wanted, words = _KINDS.get(kind, ((object,), "a word"))
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise UsageError(f"{name} is {value!r}; expected {words}")
        replace(self.attack, **settings)


ATTACKS: dict[str, Row] = {
    "badnets": Row(DirtyLabel(BadNets()), "small checkerboard, dirty labels; a control"),
    "blend": Row(DirtyLabel(Blend()), "faint noise over the picture, dirty labels; a control"),
    "sig": Row(CleanLabel(SIG()), "sinusoidal stripe, clean labels; a control", revision=1),
    "wanet": Row(WaNet(), "smooth warp of the picture, dirty labels; a control"),
    **{
        family: Row(LearnedTransformation(family), f"learned transformation: {summary}")
        for family, summary in TRANSFORMATIONS.items()
    },
    "ckd": Row(CKD(), "learned trigger on the teacher's strongest channels; survives distillation"),
    "latent": Row(Latent(), "learned trigger that imitates the target's features"),
    "backweak": Row(
        BackWeak(), "weak universal perturbation, tuned into all but the last layer", revision=1
    ),
    "adba": Row(
        ADBA(), "teacher, trigger and a shadow student learned together", ("build_surrogate",)
    ),
    "adba-ft": Row(
        ADBAFT(), "ADBA, hidden in the last layer: the teacher looks clean", ("build_surrogate",)
    ),
    "scar": Row(
        SCAR(),
        "the teacher looks clean; a surrogate in the loop wakes the student's backdoor",
        ("build_surrogate",),
        revision=1,
    ),
    "oscar": Row(
        OSCAR(),
        "SCAR without the surrogate: only the teacher resists the trigger",
        ("build_surrogate",),
        revision=1,
    ),
    "adaptive-detox": Row(
        Adaptive(knows="detox", implant_lr=0.002),
        "knows our detoxification: leaves it nothing to cut",
        ("clean_teacher",),
        revision=1,
    ),
    "adaptive-harden": Row(
        Adaptive(knows="harden"),
        "knows our hardening: its trigger leads such a student",
        ("train_surrogate",),
    ),
    "adaptive": Row(
        Adaptive(knows="both", implant_lr=0.002),
        "knows the whole method, and rehearses it before it strikes",
        ("clean_teacher", "train_surrogate"),
        revision=1,
    ),
}


def find(name: str) -> Row:
    """The attack of that name.

    Raises:
        UsageError: If there is none; the nearest name is told.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    raise UsageError(f"unknown attack {name!r}; {nearest(name, ATTACKS)}")
