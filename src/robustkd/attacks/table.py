"""The table of attacks: a new one is a file beside this and a row here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial

from robustkd.attacks.adaptive import adaptive
from robustkd.attacks.adba import adba, adba_ft
from robustkd.attacks.backweak import backweak
from robustkd.attacks.base import Attack
from robustkd.attacks.ckd import ckd
from robustkd.attacks.dirty_label import badnets, blend, sig
from robustkd.attacks.latent import latent
from robustkd.attacks.scar import oscar, scar
from robustkd.attacks.wanet import wanet
from robustkd.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One attack: what runs, one line on it, and what of the attacker's own it can be given."""

    run: Attack
    summary: str
    takes: tuple[str, ...] = ()


ATTACKS: dict[str, Row] = {
    "badnets": Row(badnets, "small checkerboard, dirty labels; a control"),
    "blend": Row(blend, "faint noise over the picture, dirty labels; a control"),
    "sig": Row(sig, "sinusoidal stripe, clean labels; a control"),
    "wanet": Row(wanet, "smooth warp of the picture, dirty labels; a control"),
    "ckd": Row(ckd, "learned trigger on the teacher's strongest channels; survives distillation"),
    "latent": Row(latent, "learned trigger that imitates the target's features"),
    "backweak": Row(backweak, "weak universal perturbation, tuned into all but the last layer"),
    "adba": Row(
        adba, "teacher, trigger and a shadow student learned together", ("build_surrogate",)
    ),
    "adba-ft": Row(
        adba_ft, "ADBA, hidden in the last layer: the teacher looks clean", ("build_surrogate",)
    ),
    "scar": Row(
        scar,
        "the teacher looks clean; a surrogate in the loop wakes the student's backdoor",
        ("build_surrogate",),
    ),
    "oscar": Row(
        oscar,
        "SCAR without the surrogate: only the teacher resists the trigger",
        ("build_surrogate",),
    ),
    "adaptive-detox": Row(
        partial(adaptive, knows="detox"),
        "knows our detoxification: leaves it nothing to cut",
        ("clean_teacher",),
    ),
    "adaptive-harden": Row(
        partial(adaptive, knows="harden"),
        "knows our hardening: its trigger leads such a student",
        ("train_surrogate",),
    ),
    "adaptive": Row(
        adaptive,
        "knows the whole method, and rehearses it before it strikes",
        ("clean_teacher", "train_surrogate"),
    ),
}


def find(name: str) -> Attack:
    """The attack of that name.

    Raises:
        UsageError: If there is none; the nearest name is told.
    """
    if name in ATTACKS:
        return ATTACKS[name].run
    near = difflib.get_close_matches(name, ATTACKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(ATTACKS)}"
    raise UsageError(f"unknown attack {name!r}; {hint}")
