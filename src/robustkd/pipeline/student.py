"""The method on one page: cleaning of the teacher, distillation, hardening, cleaning again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from robustkd.core.method_names import NetworkDefence
from robustkd.core.method_settings import DetoxOptions, DetoxSettings, detox_for_data
from robustkd.core.methods import Method
from robustkd.core.types import DataSource
from robustkd.pipeline import run_folder
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.pipeline.hardening import make_hardening
from robustkd.student.distillation import distill
from robustkd.student.safeguards import start_safeguard
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.cleaning import clean_network
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.masks import DetoxifiedTeacher
from robustkd.training.config import Precision, TrainingConfig
from robustkd.training.processes import ONE, Processes


@dataclass(frozen=True)
class Made:
    """A student with the record of its making.

    Attributes:
        student: The trained network, in eval mode.
        detoxified: The detoxified teacher, if the method detoxifies.
        record: Record of cleaning, detoxification and distillation, as JSON values.
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
    processes: Processes = ONE,
) -> Made:
    """Clean the teacher, distil it, harden the student and clean it, as the method specifies.

    A defence of the registry cleans the teacher before it is detoxified, or the student after its
    training.

    Args:
        teacher: The untrusted network; it is not changed.
        student: Network with fresh weights; trained in place.
        clean: The user's clean images, with the augmentation of the method.
        how: The method.
        training: How the student is trained.
        detoxing: Settings of the detoxification that depend on the data, such as ``steps``; see
            :data:`robustkd.core.method_settings.BY_DATA`.
        seed: Seed of everything random.
        label: Label of the progress bar.
        log: File for one JSON line per epoch.
        run: Run folder that stores the state, so that the run can be resumed.
        processes: Processes that train the student together. Each of them cleans and searches the
            teacher, and continues with the result of the first one.
    """
    started = time.perf_counter()
    record: dict[str, object] = {}
    source, detoxified = teacher, None
    if how.defence is not None and how.defence.on == "teacher":
        source, record["defence"] = _cleaned(
            source, clean, how.defence, seed, training.precision, run
        )
        processes.same([source])
    if how.detox is not None:
        settings = detox_for_data(how.detox, detoxing)
        detoxified, record["detox"] = _detoxified(
            source, clean, how, settings, seed, training.precision, run
        )
        processes.same([detoxified])
        source = detoxified
    learnt = distill(
        student,
        clean,
        teacher=source if how.losses else None,
        losses=how.losses,
        until=how.until,
        hardening=make_hardening(how, source, clean, seed=seed),
        safeguard=start_safeguard(how.safeguard, clean.image_shape, seed=seed),
        seed=seed,
        label=label,
        log=log,
        keeper=run,
        processes=processes,
        **asdict(training),
    )
    record.update(epochs=learnt.epochs, kept=learnt.kept)
    made = learnt.student
    if how.defence is not None and how.defence.on == "student":
        made, record["defence"] = _cleaned(made, clean, how.defence, seed, training.precision, run)
        processes.same([made])
    seconds = time.perf_counter() - started if run is None else run.seconds
    return Made(made, detoxified, record, seconds)


def _detoxified(
    teacher: nn.Module,
    clean: DataSource,
    how: Method,
    settings: DetoxSettings,
    seed: int,
    precision: Precision,
    run: run_folder.Run | None,
) -> tuple[DetoxifiedTeacher, dict[str, object]]:
    """Return the detoxified teacher and its record; a resumed run takes those that it stored."""

    def detoxified() -> tuple[DetoxifiedTeacher, dict[str, object]]:
        objective = detox_objective(how, teacher, clean, seed=seed)
        made = detoxify(
            teacher,
            clean,
            objective=objective,
            seed=seed,
            precision=precision,
            **asdict(settings),
        )
        return made.teacher, asdict(made.record)

    return detoxified() if run is None else run.detoxify_once(detoxified, teacher)


def _cleaned(
    network: nn.Module,
    clean: DataSource,
    defence: NetworkDefence,
    seed: int,
    precision: Precision,
    run: run_folder.Run | None,
) -> tuple[nn.Module, dict[str, object]]:
    """Return the network as cleaned by a defence, and its record."""

    def compute() -> Defended:
        return clean_network(network, clean, defence, seed=seed, precision=precision)

    done = compute() if run is None else run.clean_once(compute, network, defence.on)
    return done.network, done.record
