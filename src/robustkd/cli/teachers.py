"""The teacher of a student that is verified: how it is read, and its accuracy."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.cli.flags import TeacherFlags
from robustkd.cli.opening import check_none_stated, of_attack, student_of
from robustkd.core.errors import InputError, printable

if TYPE_CHECKING:
    from torch import nn

    from robustkd.core.types import DataSource
    from robustkd.evaluation.verification import Recorded
    from robustkd.models import Classifier, Spec
    from robustkd.pipeline.teacher_of_run import TeacherOfRun
    from robustkd.report.results import Results
    from robustkd.training.metrics import Proportion

_OF_THE_STUDENT = (
    "the classes are those of the student: give the teacher that it was distilled from, or the "
    "folder of its run without --teacher"
)


@dataclass(frozen=True)
class HowRead:
    """How a teacher's file is read.

    Attributes:
        words: Words about the file, and which of its weights are used.
        path: The file.
        sha256: Its SHA-256.
        key: Key of the state dict in the file; empty if there is none.
        spec: Specification of the network, with its normalisation.
        origin: Where mean and standard deviation come from.
    """

    words: str
    path: Path
    sha256: str
    key: str
    spec: Spec
    origin: str

    @property
    def line(self) -> str:
        """One line about the file and the normalisation of the images."""
        mean, std = (_joined(values, ", ") for values in (self.spec.mean, self.spec.std))
        return f"teacher: {self.words}; mean {mean}, std {std} ({self.origin})"


@dataclass(frozen=True)
class MeasuredTeacher:
    """A teacher that was measured on the data of its student.

    Attributes:
        accuracy: Accuracy on the test images.
        how: How its file was read.
        recorded: Accuracies in the results of the run of the student, if this is its teacher.
    """

    accuracy: Proportion
    how: HowRead
    recorded: Recorded | None

    def record(self) -> dict[str, object]:
        """Return how the teacher was read, as JSON values."""
        how, known = self.how, self.recorded
        return {
            "path": str(how.path),
            "sha256": how.sha256,
            "key": how.key,
            "mean": list(how.spec.mean),
            "std": list(how.spec.std),
            "normalisation": how.origin,
            "accuracy_in_run": None if known is None else asdict(known.teacher),
        }


def measure_teacher(
    path: Path,
    arch: str | None,
    source: DataSource,
    flags: TeacherFlags,
    *,
    student: Path,
    strict: bool,
) -> MeasuredTeacher:
    """Measure a teacher on the test images of its student, as these are read for the student.

    The teacher of the run of the student is read as in the run, unless the flags say how. Lines on
    stderr say how it is read.

    Args:
        path: A teacher's file of any kind, or a folder with one.
        arch: Its architecture.
        source: Data of the student.
        flags: How the file is read.
        student: The student, or the folder of its run.
        strict: If True, a teacher that does not seem to fit the data is refused; otherwise, a line
            on stderr says so.

    Raises:
        UsageError: If the architecture is missing, or flags are given that the file does not need.
        InputError: If the file is refused or does not fit the data, or an output is not finite.
    """
    from robustkd.cli.output import print_progress
    from robustkd.core.devices import default_device
    from robustkd.models.model_file import is_described
    from robustkd.teacher.check import UnfitError, check_fit

    path = _teacher_in(path)
    if not os.path.exists(path) or is_described(path):
        check_none_stated(flags, path)
        network, how = _described(path, arch, source)
        recorded = _of_run(student, path)[1]
    else:
        network, how, recorded = _foreign(path, arch, source, flags, student)
    print_progress(how.line)
    try:
        check_fit(network.to(default_device()), source, path, advice=_OF_THE_STUDENT)
    except UnfitError as error:
        if strict:
            raise
        print_progress(f"warning: {error}")
    return MeasuredTeacher(accuracy_of(network, source), how, recorded)


def recorded_in(results: Results) -> Recorded | None:
    """Return the accuracies of student and teacher in the results of a run; None without any."""
    from robustkd.evaluation.verification import Recorded
    from robustkd.training.metrics import Proportion

    known = [run for run in results.runs if run.n_acc]
    teachers = [run for run in known if run.method == "teacher"]
    students = [run for run in known if run.method != "teacher"]
    if len(teachers) != 1 or len(students) != 1:
        return None
    own, other = (
        Proportion(round(run.acc * (run.n_acc or 0)), run.n_acc or 0)
        for run in (*students, *teachers)
    )
    return Recorded(own, other)


def accuracy_of(network: nn.Module, source: DataSource) -> Proportion:
    """Measure a teacher on the test images of its student.

    Raises:
        InputError: If an output is not finite.
    """
    from robustkd.training.inference import accuracy_by_class
    from robustkd.training.metrics import Proportion

    return sum(accuracy_by_class(network, source, "test"), start=Proportion(0, 0))


def _described(path: Path, arch: str | None, source: DataSource) -> tuple[nn.Module, HowRead]:
    """Load a teacher from a file of this package."""
    from robustkd import models
    from robustkd.core.files import sha256_of
    from robustkd.data.images.listing import shown
    from robustkd.teacher.own_files import OWN_FILE

    model = models.load(path, arch=arch)
    sha256 = sha256_of(path)
    words = f"{shown(path.name)}, a file of robustkd, {path.stat().st_size:,} bytes, sha256 "
    how = HowRead(words + sha256[:12], path, sha256, "", model.spec, OWN_FILE)
    return _in_order_of(model, path, source), how


def _foreign(
    path: Path, arch: str | None, source: DataSource, flags: TeacherFlags, student: Path
) -> tuple[nn.Module, HowRead, Recorded | None]:
    """Read a teacher's file of another kind, as the run of the student did if it is its teacher."""
    from robustkd.cli.output import print_progress
    from robustkd.pipeline.opening import architecture, file_line, teacher_for, unused
    from robustkd.teacher.preprocessing import weights_in

    arch = architecture(path, arch, flag="--teacher-arch")
    known, recorded = _of_run(student, weights_in(path))
    used, outputs = (flags, ()) if known is None else _as_in_run(known, flags, source)
    if said := _differences(used, flags, outputs):
        print_progress(f"{path} is the teacher of {student} and is read as there: {said}")
    read = teacher_for(path, arch, source, **asdict(used), outputs=outputs)
    how = HowRead(
        f"{file_line(read.file)}{unused(read.file)}",
        path,
        read.file.sha256,
        read.file.key,
        read.model.spec,
        read.file.normalisation if used.mean == flags.mean else "as in the run of the student",
    )
    return read.model, how, recorded


def _of_run(student: Path, file: Path) -> tuple[TeacherOfRun | None, Recorded | None]:
    """Return how a run read a file and which accuracies it measured, if it is its teacher's."""
    from robustkd import report
    from robustkd.cli.output import print_progress
    from robustkd.pipeline.run_checks import unchanged
    from robustkd.pipeline.run_files import RESULTS
    from robustkd.pipeline.teacher_of_run import teacher_of_run

    if not (student / RESULTS).is_file():
        return None, None
    try:
        if not unchanged(student, RESULTS):
            raise InputError(f"{student / RESULTS} is not the file that its run wrote")
        results = report.read(student)
        known = teacher_of_run(student, results)
    except InputError as error:
        print_progress(f"warning: {error}; how the run read its teacher is not taken from it")
        return None, None
    if known is None or not known.is_in(file):
        return None, None
    return known, recorded_in(results)


def _as_in_run(
    known: TeacherOfRun, flags: TeacherFlags, source: DataSource
) -> tuple[TeacherFlags, tuple[int, ...]]:
    """Return flags and outputs with which a run read its teacher; given ones have precedence."""
    named = getattr(source, "outputs", ()) or known.classes != source.classes
    outputs = () if named else known.outputs
    if flags.stated():
        return flags, outputs
    return replace(flags, mean=known.mean, std=known.std, teacher_key=known.key), outputs


def _differences(used: TeacherFlags, given: TeacherFlags, outputs: tuple[int, ...]) -> str:
    """Return what is taken from a run, as flags where there are any; empty if nothing is.

    >>> _differences(TeacherFlags((0.5,), (0.25,), "ema"), TeacherFlags(), (3, 1))
    '--mean 0.5 --std 0.25 --teacher-key ema, outputs 3 1'
    """
    parts = []
    if used.mean != given.mean:
        parts.append(f"--mean {_joined(used.mean)} --std {_joined(used.std)}")
    if used.teacher_key is not None and used.teacher_key != given.teacher_key:
        parts.append(f"--teacher-key {printable(shlex.quote(used.teacher_key))}")
    listed = ", outputs " + _joined(outputs) if outputs else ""
    return (" ".join(parts) + listed).removeprefix(", ")


def _joined(values: Sequence[float | int], separator: str = " ") -> str:
    return separator.join(f"{value:.6g}" for value in values)


def _teacher_in(path: Path) -> Path:
    """Return the teacher's file in the folder of an attack; any other path as it is.

    Raises:
        InputError: If there is nothing at the path, or it is the folder of a run, whose student is
            no teacher, or an exported model.
    """
    found = student_of(path)
    if found != path:
        raise InputError(
            f"{path} is the folder of a run, which has a student; give the teacher's file"
        )
    return of_attack(path)


def _in_order_of(model: Classifier, path: Path, source: DataSource) -> nn.Module:
    """Return a model whose outputs are in the order of the classes of some data.

    Raises:
        InputError: If the model has other classes, or expects images of another shape.
    """
    from robustkd import models
    from robustkd.core.names import as_found
    from robustkd.models.reordered import Reordered

    own = as_found(model.spec.class_names, source.classes)
    moved = set(own) == set(source.classes) and own != source.classes
    models.check_fits(
        model.spec,
        path,
        classes=len(source.classes),
        image_shape=source.image_shape,
        names=() if moved else source.classes,
    )
    return Reordered(model, [own.index(name) for name in source.classes]) if moved else model
