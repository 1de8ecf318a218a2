"""Our own method as it is used by adaptive attackers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace

from torch import nn

from robustkd.attacks.adaptive import Cleaned
from robustkd.attacks.parts.surrogate import fresh
from robustkd.core.method_settings import DetoxOptions, DetoxSettings, detox_for_data
from robustkd.core.methods import Method
from robustkd.core.types import DataSource, Settings
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.pipeline.student import make_student
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import TrainingConfig, TrainingOptions

_APART = 2**20
"""Added to the attacker's seed, so that no surrogate equals the student that is measured."""


def expected_method(takes: Collection[str], hardened: str = "default") -> str | None:
    """Return the method that an adaptive attacker expects.

    Attackers who know the detoxification expect ``both``, whose students are hardened against
    additions and patterns alone.

    Args:
        takes: Names of the arguments that the attack accepts, from its row in the table of attacks.
        hardened: Name of the method that an attacker expects who knows the hardening alone.
    """
    if "clean_teacher" in takes:
        return "both"
    return hardened if "train_surrogate" in takes else None


def informed(
    takes: Collection[str],
    how: Method,
    *,
    build_student: Callable[[], nn.Module],
    training: TrainingOptions,
    detoxing: DetoxOptions | None = None,
    seed: int = 0,
) -> Settings:
    """Return the arguments that an adaptive attack takes in addition.

    Args:
        takes: Names of the arguments that the attack accepts, from its row in the table of attacks.
        how: The method that the attacker expects the defender to use.
        build_student: Function that makes a student; surrogates get other initial weights.
        training: The defender's arguments of :func:`robustkd.student.distillation.distill`.
        detoxing: Settings of the defender's detoxification that depend on the data. Its ``steps``
            and the ``epochs`` of ``training``, where given, are halved and rounded up, so that one
            rehearsal per round stays affordable.
        seed: Seed of the attack.

    Returns:
        ``clean_teacher`` for an attacker who knows the detoxification, ``train_surrogate`` for one
        who knows the hardening, as :class:`robustkd.attacks.adaptive.Adaptive` takes them.
    """
    half = training.copy()
    if "epochs" in half:
        half["epochs"] = -(-half["epochs"] // 2)
    if "warmup_epochs" in half:
        half["warmup_epochs"] /= 2
    brief = DetoxOptions() if detoxing is None else detoxing.copy()
    if "steps" in brief:
        brief["steps"] = -(-brief["steps"] // 2)

    def clean_teacher(teacher: nn.Module, data: DataSource) -> Cleaned:
        settings = asdict(detox_for_data(how.detox or DetoxSettings(), brief))
        apart = seed + _APART
        objective = detox_objective(how, teacher, data, seed=apart)
        cleaned = detoxify(teacher, data, objective=objective, seed=apart, **settings).teacher
        return Cleaned(cleaned, dict(zip(cleaned.locations, cleaned.masks, strict=True)))

    def train_surrogate(teacher: nn.Module, data: DataSource) -> nn.Module:
        return make_student(
            teacher,
            fresh(build_student, seed + _APART),
            data,
            # An attacker who knows both passes a teacher that is already detoxified.
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
