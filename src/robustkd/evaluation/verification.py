"""Verification of a student: accuracy, loss of accuracy, attack success, and a quick audit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError, UsageError
from robustkd.core.statistics import difference_interval
from robustkd.core.targets import NEXT, Target
from robustkd.core.triggers import check_target, victims, wanted
from robustkd.core.types import DataSource, Labels, Split, Trigger
from robustkd.core.usual_state import usual_state
from robustkd.data.in_memory import to_floats
from robustkd.evaluation.audit import Audit, audit
from robustkd.evaluation.measurement import measure
from robustkd.models.features.taps import frozen_modes
from robustkd.training.inference import accuracy_by_class, check_finite, images_at_once
from robustkd.training.metrics import Proportion
from robustkd.training.sources import LEARNING
from robustkd.training.trial import check_classifier

Outcome: TypeAlias = Literal["passed", "suspicious", "missed", "inconclusive"]
_MOST_DIGITS = 6
_ROUNDED = 0.002
"""Share of images whose class may differ on another device."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that a student must meet; None for none.

    Attributes:
        min_accuracy: Smallest accuracy on the test images, in [0, 1].
        max_drop: Largest loss of accuracy compared with the teacher, in [0, 1].
        max_asr: Largest attack success rate, in [0, 1].

    Raises:
        UsageError: If a threshold is out of range.
    """

    min_accuracy: float | int | None = None
    max_drop: float | int | None = None
    max_asr: float | int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is {value}; expected a fraction from 0 to 1")


@dataclass(frozen=True)
class Recorded:
    """Accuracies on the test images that the run of a student measured.

    Attributes:
        student: Accuracy of the student.
        teacher: Accuracy of the teacher, on the same images.
    """

    student: Proportion
    teacher: Proportion

    def agrees(self, accuracy: Proportion) -> bool:
        """Whether the accuracy of the student is that of the run, up to rounding on a device.

        Otherwise, the test images or how they are read have changed.
        """
        return _agree(accuracy, self.student)

    def disagreement(self, student: Proportion, teacher: Proportion) -> str:
        """Return a sentence if this teacher has another accuracy than in the run; else nothing.

        Args:
            student: Accuracy of the student, which shows whether the test images are the same.
            teacher: Accuracy of the same teacher, as it is read now.
        """
        if not self.agrees(student) or _agree(teacher, self.teacher):
            return ""
        return (
            f"the accuracy of the teacher is {teacher} on {teacher.n} test images, and it was "
            f"{self.teacher} on the same images in the run of the student, so it is not read as "
            "there: check --mean, --std, --teacher-key and --class-names"
        )


def _agree(one: Proportion, other: Proportion) -> bool:
    """Return whether two accuracies are equal, up to rounding on a device."""
    return one.n == other.n and abs(one.hits - other.hits) <= math.ceil(_ROUNDED * one.n)


@dataclass(frozen=True)
class Verification:
    """Measurements of a student, and the thresholds that it misses.

    Attributes:
        accuracy: Accuracy on the test images.
        by_class: Accuracy on the images of each class.
        teacher: Accuracy of the teacher on the same images; None if it is unknown.
        asr: Attack success rate; None if no trigger was given.
        audit: Audit of the student; None if it was left out.
        classes: Names of the classes.
        thresholds: The thresholds.
        missed: One sentence for each threshold that is missed.
        close: One sentence for each threshold that is met, and is within the 95 % interval of its
            measurement.
        unknown: Why the accuracy of the teacher in the results of the run is not used; empty if it
            is, or if there is none.
    """

    accuracy: Proportion
    by_class: tuple[Proportion, ...]
    teacher: Proportion | None
    asr: Proportion | None
    audit: Audit | None
    classes: tuple[str, ...]
    thresholds: Thresholds
    missed: tuple[str, ...]
    close: tuple[str, ...]
    unknown: str = ""

    @property
    def outcome(self) -> Outcome:
        """The most serious result: evidence of a backdoor, then thresholds, then doubt."""
        word = "no evidence" if self.audit is None else self.audit.verdict.word
        if word == "suspicious":
            return "suspicious"
        if self.missed:
            return "missed"
        return "inconclusive" if word == "inconclusive" else "passed"

    @property
    def drop(self) -> tuple[float, tuple[float, float]] | None:
        """Accuracy of the teacher minus that of the student, and its 95 % interval."""
        return None if self.teacher is None else _drop(self.teacher, self.accuracy)

    def record(self) -> dict[str, object]:
        """Return the result as JSON values."""
        drop = self.drop
        return {
            "outcome": self.outcome,
            "accuracy": asdict(self.accuracy),
            "classes": list(self.classes),
            "by_class": [asdict(each) for each in self.by_class],
            "teacher": None if self.teacher is None else asdict(self.teacher),
            "drop": None if drop is None else {"value": drop[0], "interval": list(drop[1])},
            "asr": None if self.asr is None else asdict(self.asr),
            "audit": None if self.audit is None else self.audit.record(),
            "thresholds": asdict(self.thresholds),
            "missed": list(self.missed),
            "close": list(self.close),
            "teacher_unknown": self.unknown,
        }


@usual_state
def verify(
    student: nn.Module,
    data: DataSource,
    *,
    thresholds: Thresholds,
    teacher: Proportion | None = None,
    recorded: Recorded | None = None,
    trigger: Trigger | None = None,
    triggered: Tensor | None = None,
    triggered_labels: Labels | None = None,
    target: Target = 0,
    audited: bool = True,
    seed: int = 0,
) -> Verification:
    """Measure a student, and compare it with thresholds.

    Args:
        student: Any classifier of images in [0, 1].
        data: Clean images; accuracies are measured on ``test``, and only the audit reads others.
        thresholds: What the student must meet.
        teacher: Accuracy of the teacher on the test images; None to take that of the run.
        recorded: Accuracies that the run of the student measured; that of the teacher is used if
            that of the student agrees with its present accuracy.
        trigger: Trigger of the attack, if it is known.
        triggered: Triggered images of other classes than the target, as bytes, n x C x H x W.
        triggered_labels: Their labels, which only the target ``next`` needs.
        target: Target class of the attack, or ``next`` for the next class of each image; ignored
            without a trigger or triggered images.
        audited: If True, make the quick audit.
        seed: Seed of the audit.

    Raises:
        UsageError: If a threshold needs something that is not given, ``target`` is no class,
            ``triggered`` is empty, or the student does not fit the data.
        InputError: If a threshold needs the accuracy of the teacher, and the test images are not
            those of the run; if images that are read are not in [0, 1]; or if an output of the
            student is not finite.
    """
    if thresholds.max_drop is not None and teacher is None and recorded is None:
        raise UsageError(
            "--max-drop is given, but the teacher's accuracy is unknown; give --teacher, or the "
            "folder of a run"
        )
    if thresholds.max_asr is not None and trigger is None and triggered is None:
        raise UsageError("--max-asr is given without --trigger or --triggered; add one of them")
    if trigger is not None or triggered is not None:
        check_target(target, data)
    goals = None
    if triggered is not None:
        triggered, goals = _with_goals(triggered, triggered_labels, target, len(data.classes))
    splits: tuple[Split, ...] = (*LEARNING, "test") if audited else ("test",)
    check_classifier(student, data, name="the student", splits=splits)
    by_class = accuracy_by_class(student, data, "test")
    accuracy = sum(by_class, start=Proportion(0, 0))
    unknown = ""
    if teacher is None and recorded is not None:
        if recorded.agrees(accuracy):
            teacher = recorded.teacher
        else:
            unknown = (
                f"the accuracy of the student was {recorded.student} on {recorded.student.n} test "
                "images in its run: the test images, their preprocessing or the student have "
                "changed"
            )
            if thresholds.max_drop is not None:
                raise InputError(
                    f"the accuracy is {accuracy} on {accuracy.n} test images, but {unknown}; "
                    "measure the teacher with --teacher"
                )
    asr = None
    if trigger is not None:
        asr = measure(student, data, trigger=trigger, target=target).asr
    elif triggered is not None and goals is not None:
        asr = success_on_triggered(student, triggered, goals)
    missed, close = _compared(thresholds, accuracy, teacher, asr)
    found = audit(student, data, quick=True, seed=seed) if audited else None
    return Verification(
        accuracy, by_class, teacher, asr, found, data.classes, thresholds, missed, close, unknown
    )


def _with_goals(
    images: Tensor, labels: Labels | None, target: Target, classes: int
) -> tuple[Tensor, Tensor]:
    """Return the triggered images that count, and the class that the attacker wants for each.

    With one target class, all images count; the caller has left out those of the class.
    """
    if not len(images):
        raise UsageError("triggered is empty; expected at least one image")
    if not isinstance(target, str):
        return images, torch.full((len(images),), target)
    if labels is None or len(labels) != len(images):
        raise UsageError(
            f"target is {NEXT}, and triggered_labels is not given for each triggered image; the "
            "next class of an image needs its label"
        )
    counted = victims(labels, target, classes)
    if not bool(counted.any()):
        raise UsageError("triggered has no image with a label; expected at least one")
    return images[counted], wanted(labels[counted], target, classes)


def success_on_triggered(model: nn.Module, images: Tensor, goals: Labels) -> Proportion:
    """Count the images that a model classifies as the attacker wants.

    Args:
        model: Any classifier of images in [0, 1].
        images: Triggered images as bytes, n x C x H x W.
        goals: The class that the attacker wants for each image.

    Raises:
        InputError: If an output of the model is not finite.
    """
    hits = 0
    with torch.inference_mode(), frozen_modes(model):
        at_once = images_at_once(images)
        for some, wished in zip(images.split(at_once), goals.split(at_once), strict=True):
            logits = model(to_floats(some, device_of(model)))
            check_finite(logits, "triggered images")
            hits += int((logits.argmax(1).cpu() == wished.cpu()).sum())
    return Proportion(hits, len(images))


def _drop(teacher: Proportion, student: Proportion) -> tuple[float, tuple[float, float]]:
    ends = difference_interval(teacher.value, teacher.wilson(), student.value, student.wilson())
    return teacher.value - student.value, ends


def _compared(
    thresholds: Thresholds,
    accuracy: Proportion,
    teacher: Proportion | None,
    asr: Proportion | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about thresholds that are missed, and about those that are close."""
    own = Fraction(accuracy.hits, accuracy.n)
    found = [_Compared("accuracy", own, accuracy.wilson(), thresholds.min_accuracy, least=True)]
    if teacher is not None:
        lost, (_, ends) = Fraction(teacher.hits, teacher.n) - own, _drop(teacher, accuracy)
        found.append(_Compared("loss of accuracy", lost, ends, thresholds.max_drop, unit=" points"))
    if asr is not None:
        rate = Fraction(asr.hits, asr.n)
        found.append(_Compared("attack success rate", rate, asr.wilson(), thresholds.max_asr))
    given = [each for each in found if each.limit is not None]
    missed = tuple(each.sentence() for each in given if each.missed)
    return missed, tuple(each.sentence() for each in given if each.close and not each.missed)


@dataclass(frozen=True)
class _Compared:
    """A measurement and its threshold, which are compared without rounding."""

    what: str
    value: Fraction
    ends: tuple[float, float]
    limit: float | int | None
    least: bool = False
    unit: str = "%"

    @property
    def missed(self) -> bool:
        # As it was written: 0.05 is 1/20, which the nearest number in binary is not.
        limit = Fraction(str(self.limit))
        return self.value < limit if self.least else self.value > limit

    @property
    def close(self) -> bool:
        return self.limit is not None and self.ends[0] < self.limit < self.ends[1]

    def sentence(self) -> str:
        limit = Fraction(str(self.limit))
        for digits in range(1, _MOST_DIGITS):
            shown, wanted = (f"{100 * float(each):.{digits}f}" for each in (self.value, limit))
            if shown != wanted or self.value == limit:
                break
        words = "at least" if self.least else "at most"
        line = f"{self.what} is {shown}{self.unit}; expected {words} {wanted}{self.unit}"
        return f"{line}, which is within the 95 % interval" if self.close else line
