"""What the adaptive attackers know: our own method, rehearsed on their teacher."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace

from torch import nn

from robustkd.attacks.adaptive import Cleaned
from robustkd.attacks.parts.surrogate import fresh
from robustkd.core.methods import DetoxOptions, DetoxSettings, Method, stated
from robustkd.core.types import DataSource, Settings
from robustkd.pipeline.student import make_student
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import TrainingConfig, TrainingOptions

_APART = 2**20
"""Added to the attacker's seed: no surrogate is the student that is measured in the end."""


def expected_method(takes: Collection[str]) -> str | None:
    """The method that an attacker who knows us expects: the strongest that it can answer.

    Args:
        takes: What the attack's row in the table says that it can be given.
    """
    if "clean_teacher" in takes:
        return "both"
    return "default" if "train_surrogate" in takes else None


def informed(
    takes: Collection[str],
    how: Method,
    *,
    build_student: Callable[[], nn.Module],
    training: TrainingOptions,
    detoxing: DetoxOptions | None = None,
    seed: int = 0,
) -> Settings:
    """Further arguments of an attack that knows us.

    Args:
        takes: What the attack's row in the table says that it can be given.
        how: The preset that the attacker expects the defender to use.
        build_student: Makes a student; the surrogates get other weights than it gives.
        training: The defender's arguments of :func:`robustkd.student.distillation.distill`.
        detoxing: The defender's further arguments of
            :func:`robustkd.teacher.defences.detoxification.detoxify`. Of both, ``epochs`` and
            ``steps`` are halved (and rounded up) where they are given: a
            rehearsal every round must not cost more than a few teachers' training.
        seed: Of the attack.

    Returns:
        ``clean_teacher`` for who knows the detoxification, ``train_surrogate`` for who knows the
        hardening, as :class:`robustkd.attacks.adaptive.Adaptive` takes them; none of both where the
        attack takes none.
    """
    half = training.copy()
    if "epochs" in half:
        half["epochs"] = -(-half["epochs"] // 2)
    brief = DetoxOptions() if detoxing is None else detoxing.copy()
    if "steps" in brief:
        brief["steps"] = -(-brief["steps"] // 2)

    def clean_teacher(teacher: nn.Module, data: DataSource) -> Cleaned:
        settings = {**asdict(DetoxSettings()), **brief, **(stated(how.detox) or {})}
        cleaned = detoxify(teacher, data, seed=seed + _APART, **settings).teacher
        return Cleaned(cleaned, dict(zip(cleaned.locations, cleaned.masks, strict=True)))

    def train_surrogate(teacher: nn.Module, data: DataSource) -> nn.Module:
        return make_student(
            teacher,
            fresh(build_student, seed + _APART),
            data,
            # The one who knows both hands over a teacher that is clean already.
            replace(how, detox=None) if "clean_teacher" in takes else how,
            training=TrainingConfig(**half),
            detoxing=brief,
            seed=seed + _APART,
            label="rehearse the defence",
        ).student

    known: Settings = {"train_surrogate": train_surrogate}
    if how.detox is not None:
        known = {**known, "clean_teacher": clean_teacher}
    return {name: known[name] for name in takes if name in known}
