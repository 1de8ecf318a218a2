"""Description of a run, shared by the command line, Python, dry runs and resumed runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence, Side
from robustkd.core.methods import Method, find_method, method_name
from robustkd.core.validation import (
    check_names,
    check_seed,
    check_switches,
    check_text,
    plain_numbers,
)
from robustkd.data.augment import AUGMENTATIONS
from robustkd.models import check_name
from robustkd.student.objective import check_weights
from robustkd.teacher.defences.registry import find
from robustkd.training.config import TrainingConfig
from robustkd.training.recipes import usual_training


@dataclass(frozen=True)
class DistillJob:
    """Immutable description of a distillation run.

    Attributes:
        teacher: File of the untrusted teacher, or a folder of the Hugging Face Hub with it.
        arch: Architecture of the teacher. It is named by the user, or by ``config.json`` beside the
            weights, and never read from the weights' file.
        student: Architecture of the student.
        method: Name of a method, see :data:`robustkd.core.methods.METHODS`.
        training: How the student is trained.
        seed: Seed of everything random; the same seed gives the same student file.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised. If
            neither this nor the file has it, the values published for the architecture and those
            of the clean images are tried, and the more accurate ones are used.
        std: Standard deviation of each channel, likewise.
        teacher_taps: Module paths of the teacher's stages; empty to find them.
        student_taps: Module paths of the student's stages; the last stages of both are paired.
        keep_class_order: If True, the teacher is accepted although its outputs seem to be in
            another order than the classes.
        teacher_key: Key of the state dict in the teacher's file; None for the most accurate one
            that fits.
        allow_weak_sandbox: If True, read the teacher even on a system without seccomp, where a
            flaw in the reader could be exploited. The student does not depend on it.
        augment: One of :data:`robustkd.data.augment.AUGMENTATIONS`; None for the usual one, made
            weaker if the teacher is much less accurate with it.
        student_weights: File of weights from which the student starts, or a folder of the Hugging
            Face Hub with it; None for random weights. Which file it is, is not among the settings,
            since its SHA-256 is recorded.
        defence: Name of a defence that cleans a network in addition to what the method does, see
            :data:`robustkd.teacher.defences.registry.DEFENCES`; None for none.
        on: Network that the defence cleans: the teacher before the distillation, or the finished
            student.

    Raises:
        UsageError: If a name is unknown, the defence does not fit the method, the seed is out of
            range, or an argument is of another type.
    """

    teacher: Path
    arch: str
    student: str
    method: str = "default"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    keep_class_order: bool = False
    teacher_key: str | None = None
    allow_weak_sandbox: bool = False
    augment: str | None = None
    student_weights: Path | None = None
    defence: str | None = None
    on: Side = "teacher"

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("teacher_key", "augment", "defence")}
        check_text(arch=self.arch, student=self.student, method=self.method)
        check_text(**{name: value for name, value in given.items() if value is not None})
        check_switches(
            keep_class_order=self.keep_class_order, allow_weak_sandbox=self.allow_weak_sandbox
        )
        check_names(teacher_taps=self.teacher_taps, student_taps=self.student_taps)
        # The settings are written to files, which hold no numbers of NumPy.
        plain = {
            "method": method_name(self.method),
            "seed": check_seed(self.seed),
            "mean": plain_numbers("mean", self.mean),
            "std": plain_numbers("std", self.std),
            "teacher_taps": tuple(self.teacher_taps),
            "student_taps": tuple(self.student_taps),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.defence is not None:
            find(self.defence)
        check_method(self.name)
        check_name(self.student)
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise UsageError(f"augment is {self.augment!r}; expected {', '.join(AUGMENTATIONS)}")
        own = self.how.augment
        if own is not None and self.augment not in (None, own):
            raise UsageError(
                f"augment is {self.augment!r}, but method {self.method!r} uses {own!r}; "
                "leave it out"
            )

    @property
    def name(self) -> str:
        """Name of the method with the defence, under which results are stored."""
        if self.defence is None:
            return self.method
        return NetworkDefence(self.defence, self.on).around(self.method)

    @property
    def how(self) -> Method:
        """The method with the defence."""
        return find_method(self.name)

    @property
    def augmentation(self) -> str | None:
        """Augmentation that the user or the method names; None for the usual one."""
        return self.how.augment if self.augment is None else self.augment

    def settings(self) -> dict[str, object]:
        """Return the settings that the student depends on, besides teacher and data."""
        return {
            "arch": self.arch,
            "student": self.student,
            "method": self.method,
            "seed": self.seed,
            "mean": self.mean,
            "std": self.std,
            "teacher_taps": self.teacher_taps,
            "student_taps": self.student_taps,
            **self.training.stated(),
            **({"keep_class_order": True} if self.keep_class_order else {}),
            **({} if self.teacher_key is None else {"teacher_key": self.teacher_key}),
            **({} if self.augment is None else {"augment": self.augment}),
            **({} if self.defence is None else {"defence": self.defence, "on": self.on}),
        }

    def flags(self) -> dict[str, object]:
        """Return the settings as flags for ``config.yaml``.

        Settings of the training whose default depends on the student or on the optimiser are stated
        as well. Otherwise, a value that is the default of :class:`TrainingConfig`, such as SGD for
        a transformer, would be replaced by that of the student when the flags are read.
        """
        how = self.training
        usual = usual_training(self.student, epochs=how.epochs)
        chosen = usual_training(self.student, epochs=how.epochs, optimizer=how.optimizer)
        own = {name: getattr(how, name) for name in (*usual, *chosen)}
        return self.settings() | own

    def provenance(self, data: str) -> dict[str, object]:
        """Return the provenance that is stored in the student's file, as JSON values."""
        return {
            "method": self.name,
            "data": data,
            "seed": self.seed,
            "training": self.training.stated(),
        }


def check_method(name: str) -> None:
    """Raise an error for the name of a method whose defence or losses are unknown.

    Raises:
        UsageError: If there is no such method, loss or defence, or they do not fit together.
    """
    how = find_method(name)
    check_weights(how.losses)
    if how.defence is not None:
        find(how.defence.name)


def audit_flag(audited: bool) -> dict[str, object]:
    """Return ``{"audit": False}`` for a run without an audit, and otherwise an empty mapping.

    With an audit, the flag is left out, since True is its default.
    """
    return {} if audited else {"audit": False}
