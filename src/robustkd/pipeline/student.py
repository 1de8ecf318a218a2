"""Creation of one student: detoxification of the teacher, distillation and hardening."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from robustkd.core.methods import DetoxOptions, DetoxSettings, Method, stated
from robustkd.core.types import DataSource
from robustkd.pipeline import run_folder
from robustkd.student.distillation import distill
from robustkd.student.hardening import UniversalPerturbations
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.masks import DetoxifiedTeacher
from robustkd.training.config import TrainingConfig


@dataclass(frozen=True)
class Made:
    """A student with the record of its making.

    Attributes:
        student: The trained network, in eval mode.
        detoxified: The detoxified teacher, if the method detoxifies.
        record: Record of detoxification and distillation, as JSON values.
        seconds: Total wall time.
    """

    student: nn.Module
    detoxified: DetoxifiedTeacher | None
    record: dict[str, object]
    seconds: float


def make_student(
    teacher: nn.Module,
    student: nn.Module,
    clean: DataSource,
    how: Method,
    *,
    training: TrainingConfig,
    detoxing: DetoxOptions | None = None,
    seed: int = 0,
    label: str = "distil",
    log: Path | None = None,
    run: run_folder.Run | None = None,
) -> Made:
    """Detoxify the teacher, distil it and harden the student, as the method specifies.

    Args:
        teacher: The untrusted network; it is not changed.
        student: Network with fresh weights; trained in place.
        clean: The user's clean images.
        how: The method.
        training: How the student is trained.
        detoxing: Further arguments of
            :func:`robustkd.teacher.defences.detoxification.detoxify`, such as ``steps``.
        seed: Seed of everything random.
        label: Label of the progress bar.
        log: File for one JSON line per epoch.
        run: Run folder that stores the state, so that the run can be resumed.
    """
    started = time.perf_counter()
    record: dict[str, object] = {}
    source, detoxified = teacher, None
    if how.detox is not None:
        # The settings of the method override those that depend on the data.
        settings = {**asdict(DetoxSettings()), **(detoxing or {}), **(stated(how.detox) or {})}
        precision = training.precision

        def clean_up() -> tuple[DetoxifiedTeacher, dict[str, object]]:
            cleaned = detoxify(teacher, clean, seed=seed, precision=precision, **settings)
            return cleaned.teacher, asdict(cleaned.record)

        detoxified, record["detox"] = (
            clean_up() if run is None else run.detoxify_once(clean_up, teacher)
        )
        source = detoxified
    hardening = None
    if how.hardening is not None:
        hardening = UniversalPerturbations(
            len(clean.classes), clean.image_shape, seed=seed, **asdict(how.hardening)
        )
    learnt = distill(
        student,
        clean,
        teacher=source if how.losses else None,
        losses=how.losses,
        until=how.until,
        hardening=hardening,
        seed=seed,
        label=label,
        log=log,
        keeper=run,
        **asdict(training),
    )
    record.update(epochs=learnt.epochs, kept=learnt.kept)
    seconds = time.perf_counter() - started if run is None else run.seconds
    return Made(learnt.student, detoxified, record, seconds)
