"""Reading and checking the teacher and the data before a run begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass

from robustkd import models
from robustkd.core.devices import default_device
from robustkd.core.preprocessing import usual_resize
from robustkd.core.types import DataSource
from robustkd.data import split_text
from robustkd.models.features import taps
from robustkd.pipeline.initial_student import initial_student
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening import file_line, teacher_for, unused
from robustkd.pipeline.run_checks import facts_of_images
from robustkd.teacher.augmentation import AugmentationChoice, choose_augmentation
from robustkd.teacher.check import check_accuracy
from robustkd.teacher.facts import TeacherFile
from robustkd.teacher.preprocessing import BESIDE
from robustkd.training.metrics import Proportion


@dataclass(frozen=True)
class Prepared:
    """Teacher and student before the training.

    Attributes:
        teacher: The untrusted network, on the device where training happens.
        file: Properties of the teacher's file.
        accuracy: Accuracy of the teacher on the clean validation images.
        student: The student before the training.
        fresh: Specification of a student with random weights, which has the statistics of the data.
        augmentation: The data with the augmentation of the run, and how it was chosen.
        student_file: Properties of the file with the student's first weights; None if they are
            random.
    """

    teacher: models.Classifier
    file: TeacherFile
    accuracy: Proportion
    student: models.Classifier
    fresh: models.Spec
    augmentation: AugmentationChoice
    student_file: TeacherFile | None = None

    @property
    def clean(self) -> DataSource:
        """The data, with the augmentation of the run."""
        return self.augmentation.clean

    @property
    def teacher_line(self) -> str:
        """One line that describes the teacher, for the user to check before the training."""
        return (
            f"teacher: {file_line(self.file)}; accuracy {self.accuracy} on {self.accuracy.n} "
            f"validation images of {self.clean.name}"
        )

    @property
    def student_line(self) -> str:
        """One line about the file with the student's first weights; empty if they are random."""
        file = self.student_file
        if file is None:
            return ""
        return f"student: starts from {file_line(file)}{unused(file)}"


def prepare(job: DistillJob, clean: DataSource) -> Prepared:
    """Read the teacher, measure its accuracy on clean images, and build the student.

    Raises the errors of :func:`robustkd.pipeline.run.distill_file`.
    """
    read = teacher_for(
        job.teacher,
        job.arch,
        clean,
        mean=job.mean,
        std=job.std,
        teacher_key=job.teacher_key,
        allow_weak_sandbox=job.allow_weak_sandbox,
    )
    teacher = read.model.to(default_device())
    _name_taps(teacher, job.teacher_taps)
    accuracy = check_accuracy(teacher, clean, job.teacher, keep_class_order=job.keep_class_order)
    fresh = models.spec_for(job.student, clean)
    student, weights = initial_student(job, clean, fresh)
    _name_taps(student, job.student_taps)
    augmentation = choose_augmentation(teacher, clean, job.augmentation)
    return Prepared(teacher, read.file, accuracy, student, fresh, augmentation, weights)


def _name_taps(model: models.Classifier, names: tuple[str, ...]) -> None:
    for name in names:
        taps.module_at(model, name)
    model.taps = names or None


def inputs_of(job: DistillJob, ready: Prepared) -> dict[str, Mapping[str, object]]:
    """Return everything that the student depends on, as JSON values by kind."""
    inputs: dict[str, Mapping[str, object]] = {
        "settings": job.settings(),
        "teacher": identity_of_file(ready.file, ready.teacher.spec),
        "data": identity(ready.clean, ready.fresh),
    }
    if ready.student_file is not None:
        inputs["student weights"] = identity_of_file(ready.student_file, ready.student.spec)
    return inputs


def identity(clean: DataSource, spec: models.Spec) -> dict[str, object]:
    """Return properties that identify the data: for a folder, with a hash of its content."""
    split = hashlib.sha256()
    for text in split_text(clean) or ():
        split.update(text.encode())
    augmentation = getattr(clean, "augmentation", None)
    return {
        **facts_of_images(clean),
        "split": split.hexdigest(),
        "name": clean.name,
        # Other sources have no property that is the same in another process.
        "augmentation": repr(augmentation) if is_dataclass(augmentation) else None,
        "mean": list(spec.mean),
        "std": list(spec.std),
        **_form(spec),
    }


def identity_of_file(file: TeacherFile, spec: models.Spec) -> dict[str, object]:
    """Return properties that identify weights and how their network normalises images.

    Mean and standard deviation are included if a file next to the weights states them, since the
    hash of the weights does not depend on it.
    """
    beside = file.normalisation.endswith(BESIDE)
    return {
        "sha256": file.sha256,
        "normalisation": [list(spec.mean), list(spec.std)] if beside else None,
    }


def _form(spec: models.Spec) -> dict[str, object]:
    """Return crop, resize and interpolation, unless they are those of all earlier versions."""
    found = (spec.crop, spec.resize, spec.interpolation)
    usual = (usual_resize(spec.image_shape), models.Spec.interpolation)
    return {} if found[1:] == usual else {"form": list(found)}
