"""The student before the training: fresh, or with weights from a file."""

from __future__ import annotations

from dataclasses import replace

from robustkd import models
from robustkd.core.types import DataSource
from robustkd.pipeline.job import DistillJob
from robustkd.teacher.facts import TeacherFile
from robustkd.teacher.read import read_teacher


def initial_student(
    job: DistillJob, clean: DataSource, spec: models.Spec | None = None
) -> tuple[models.Classifier, TeacherFile | None]:
    """Build the student of a job, and fill it with the weights of a file if the user names one.

    The file is untrusted, and is read and matched like that of a teacher. If its head has another
    number of classes, the student keeps its fresh head. The student normalises images as its
    weights need it: by the values in the file or next to it, else by those that are published for
    the architecture, else by the statistics of the data.

    Args:
        job: Description of the run.
        clean: The user's clean images.
        spec: Specification of a fresh student of this data; None to compute it.

    Returns:
        The network in training mode, and the properties of the file, None without one.

    Raises:
        UsageError: If the architecture does not fit the images.
        InputError: If the file is refused or does not fit the architecture.
    """
    spec = models.spec_for(job.student, clean) if spec is None else spec
    student = models.build(spec, seed=job.seed)
    if job.student_weights is None:
        return student, None
    read = read_teacher(
        job.student_weights,
        arch=job.student,
        classes=spec.classes,
        image_shape=spec.image_shape,
        statistics=lambda: (spec.mean, spec.std),
        head=student.network.state_dict(),
        allow_weak_sandbox=job.allow_weak_sandbox,
    )
    own = read.model.spec
    student = models.build(replace(spec, mean=own.mean, std=own.std), seed=job.seed)
    student.network.load_state_dict(read.model.network.state_dict())
    return student, read.file
