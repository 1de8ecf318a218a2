"""What comes in: the teacher's file and the clean data, read and checked before a run begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args

from robustkd import models
from robustkd.core.devices import default_device
from robustkd.core.methods import Preset, preset
from robustkd.core.types import DataSource, Split
from robustkd.data import split_text
from robustkd.data.images.listing import shown
from robustkd.models.features import taps
from robustkd.teacher.check import check_accuracy
from robustkd.teacher.read import TeacherFile, read_teacher
from robustkd.training.inference import accuracy_on
from robustkd.training.metrics import Proportion


@dataclass(frozen=True)
class Prepared:
    """What is ready before anything is written or learnt.

    Attributes:
        how: What the method says.
        teacher: The untrusted network, on the device where training happens.
        file: The facts of its file.
        knows: Its accuracy on the clean validation images, in [0, 1].
        student: Network with fresh weights.
    """

    how: Preset
    teacher: models.Classifier
    file: TeacherFile
    knows: Proportion
    student: models.Classifier

    def line(self, clean: DataSource) -> str:
        """What a user should see before hours of training."""
        file = self.file
        return (
            f"teacher: {shown(file.name)}, {file.format}, {file.bytes:,} bytes, sha256 "
            f"{file.sha256[:12]}; {file.matched} tensors matched; right on {self.knows} of "
            f"{self.knows.n} validation images of {clean.name}"
        )


def prepare(
    teacher_file: Path,
    *,
    arch: str,
    clean: DataSource,
    student_arch: str,
    method: str = "default",
    seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    teacher_taps: tuple[str, ...] = (),
    student_taps: tuple[str, ...] = (),
) -> Prepared:
    """Read the teacher, see what it knows, and build the student.

    Arguments and errors are those of :func:`robustkd.pipeline.run.distill_file`.
    """
    how = preset(method)
    models.check_name(student_arch)
    read = read_teacher(
        teacher_file,
        arch=arch,
        classes=len(clean.classes),
        image_shape=clean.image_shape,
        mean=mean,
        std=std,
        statistics=lambda: models.pixel_statistics(clean),
        judge=lambda model: accuracy_on(model.to(default_device()), clean, "validation").value,
    )
    teacher = read.model.to(default_device())
    _name_taps(teacher, teacher_taps)
    knows = check_accuracy(teacher, clean, teacher_file)
    student = models.build(models.spec_for(student_arch, clean), seed=seed)
    _name_taps(student, student_taps)
    return Prepared(how, teacher, read.file, knows, student)


def _name_taps(model: models.Classifier, names: tuple[str, ...]) -> None:
    for name in names:
        taps.module_at(model, name)
    model.taps = names or None


def identity(clean: DataSource, spec: models.Spec) -> dict[str, Any]:
    """What tells whether data is the same as before, without reading it again."""
    split = hashlib.sha256()
    for text in split_text(clean) or ():
        split.update(text.encode())
    augmentation = getattr(clean, "augmentation", None)
    return {
        "name": clean.name,
        "classes": list(clean.classes),
        "shape": list(clean.image_shape),
        "sizes": {part: clean.size(part) for part in get_args(Split)},
        "split": split.hexdigest(),
        # Others say nothing of themselves that another process would say again.
        "augmentation": repr(augmentation) if is_dataclass(augmentation) else None,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
