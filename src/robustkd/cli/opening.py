"""Models and data that flags name, opened for the commands that examine a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd.cli.flags import ImageFlags, TeacherFlags
from robustkd.core.errors import InputError, UsageError
from robustkd.core.known_names import check_data, is_folder

if TYPE_CHECKING:
    from robustkd.core.types import DataSource
    from robustkd.data import Reading
    from robustkd.models import Classifier, Spec

_EXPORTED = (".onnx", ".pt2")
_STUDENTS_ONLY = (
    "expected a student that robustkd wrote: measure a teacher with robustkd evaluate or robustkd "
    "audit, and --arch"
)


def open_data(
    data: str, root: Path | None, images: ImageFlags, *, classes: tuple[str, ...] | None = None
) -> DataSource:
    """Open the data that the flags name; ``--class-names`` overrides ``classes``."""
    check_data(data)
    from robustkd.data import open_source

    return open_source(data, root=root, reading=reading_of(images, classes=classes))


def reading_of(images: ImageFlags, *, classes: tuple[str, ...] | None = None) -> Reading:
    """Return how images are read; ``--class-names`` overrides ``classes``."""
    from robustkd.data import Reading

    form = ("crop", "resize", "interpolation")
    given = {name: getattr(images, name) for name in form if getattr(images, name) is not None}
    return Reading(
        image_size=images.image_size,
        channels=1 if images.grey else 3,
        flip=images.flip,
        workers=images.workers,
        streaming=images.streaming,
        classes=images.class_names or classes,
        split=images.split,
        **given,
    )


def open_student(
    path: Path, arch: str | None, data: str, root: Path | None, images: ImageFlags
) -> tuple[Classifier, DataSource]:
    """Load a student from its file or the folder of its run, and the data that it was made for.

    A line on stderr says so if its run is not finished.

    Returns:
        The student, on the CPU, and the data.

    Raises:
        UsageError: If a name is unknown.
        InputError: If the student's file is missing, damaged or that of a teacher, or the student
            was made for other data.
    """
    from robustkd import models
    from robustkd.cli.output import print_progress
    from robustkd.data.images.left_out import skipped_files
    from robustkd.models.model_file import ForeignFileError, is_described
    from robustkd.pipeline.run_files import RESULTS, STUDENT, unfinished
    from robustkd.teacher.untrusted.quarantine import check_format

    run, path = path, student_of(path)
    if path == run and os.path.isdir(path):
        raise InputError(
            f"{path} is a folder without {STUDENT}; expected a student's file, or the folder of "
            "its run"
        )
    if path.name == STUDENT and (line := unfinished(path.parent, RESULTS)):
        print_progress(f"warning: {line}")
    if os.path.isfile(path) and not is_described(path):
        check_format(path)
    try:
        model = models.load(path, arch=arch)
    except ForeignFileError as error:
        raise InputError(f"{error.fact}; {_STUDENTS_ONLY}") from error
    source = _data_as_in_run(run, model.spec, data, root, images)
    models.check_fits(
        model.spec,
        path,
        classes=len(source.classes),
        image_shape=source.image_shape,
        names=source.classes,
    )
    tell_left_out(source.name, skipped_files(source))
    return model, source


def tell_left_out(name: str, skipped: Mapping[str, int]) -> None:
    """Print on stderr which files of the data are left out, and why.

    Args:
        name: Name of the data.
        skipped: Number of files and folders by kind.
    """
    from robustkd.cli.output import print_progress
    from robustkd.data.images.left_out import left_out_lines

    for line in left_out_lines(name, skipped):
        print_progress(line)


def _data_as_in_run(
    run: Path, spec: Spec, data: str, root: Path | None, images: ImageFlags
) -> DataSource:
    """Open the data of a student; held-out images are those of its run, if that wrote them down.

    Other held-out images would be training images of the student for the most part.

    Args:
        run: The folder of the run, or the student's file in it.
        spec: Specification of the student.
        data: Name or folder of the data.
        root: Folder of the files of a named data set.
        images: How images are read; its ``split`` takes precedence.

    Raises:
        InputError: If some of the held-out images are no longer there, or the data has other splits
            than that of the run.
    """
    from robustkd.cli.output import print_progress
    from robustkd.data.images.holdout import MissingImagesError
    from robustkd.data.images.streamed import split_text

    split = (run if run.is_dir() else run.parent) / "split.json"
    found = _data_of(spec, data, root, images)
    if images.split is not None or not split.is_file() or split_text(found) is None:
        return found
    try:
        found = _data_of(spec, data, root, replace(images, split=split))
    except MissingImagesError as error:
        if error.some:
            raise
        return found  # other data, of which the student has seen nothing
    print_progress(
        f"the {found.size('test')} test and {found.size('validation')} validation images are those "
        f"of {split}, where it names them"
    )
    return found


def student_of(path: Path) -> Path:
    """Return the student's file in the folder of a run; any other path as it is.

    Raises:
        InputError: If there is nothing at the path, the run is not finished, or the path is the
            folder of an export, or one of its ONNX files or programs, which are never loaded.
        OSError: If the path cannot be looked at, for example for lack of permissions.
    """
    from robustkd.pipeline.run_files import STUDENT, check_finished

    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} does not exist; expected a model's file, or the folder of a run"
        ) from None
    inner = path / STUDENT
    if os.path.lexists(inner):
        return inner
    check_finished(path, STUDENT)
    beside = path.suffix in _EXPORTED and os.path.lexists(path.with_name("export.json"))
    if beside or os.path.lexists(path / "export.json"):
        raise InputError(
            f"{path} is an exported model, which only robustkd export measures; give the "
            "student.safetensors that was exported, or the folder of its run"
        )
    return path


def open_model(
    path: Path,
    arch: str | None,
    data: str,
    root: Path | None,
    images: ImageFlags,
    teacher: TeacherFlags,
) -> tuple[Classifier, DataSource]:
    """Load a student as :func:`open_student` does, or a teacher's file of any kind.

    Lines on stderr say how the images are read, if a file or a library states it, which weights of
    a teacher's file are used, and that a teacher does not seem to fit the data.

    Args:
        path: The file, or the folder of a run, of an attack or of weights.
        arch: Architecture of a teacher's file, or of the user's own code.
        data: Name or folder of the data.
        root: Folder of the files of a named data set.
        images: How images are read.
        teacher: How a teacher's file is read.

    Raises:
        UsageError: If a name is unknown, the architecture of a teacher's file is not given, or
            flags for teachers are given with a student.
        InputError: If the file is refused or does not fit the data, or outputs of a teacher are not
            finite.
    """
    from robustkd.models.model_file import is_described

    path = of_attack(student_of(path))
    if not os.path.exists(path) or is_described(path):
        check_none_stated(teacher, path)
        return open_student(path, arch, data, root, images)
    from robustkd.cli.output import print_progress
    from robustkd.core.devices import default_device
    from robustkd.data.images.left_out import skipped_files
    from robustkd.pipeline.opening import file_line, form_line, open_teacher, unused
    from robustkd.teacher.check import UnfitError, check_fit

    read, clean = open_teacher(
        path, arch, data, root, reading_of(images), given_of(images), **asdict(teacher)
    )
    if line := form_line(clean, read.model.spec, read.file.normalisation):
        print_progress(line)
    print_progress(
        f"teacher: {file_line(read.file)}{unused(read.file)}; mean and std: "
        f"{read.file.normalisation}"
    )
    tell_left_out(clean.name, skipped_files(clean))
    try:
        check_fit(read.model.to(default_device()), clean, path)
    except UnfitError as error:
        print_progress(f"warning: {error}")
    return read.model, clean


def check_none_stated(teacher: TeacherFlags, path: Path) -> None:
    """Raise an error for flags that a file of robustkd makes superfluous."""
    for flag in teacher.stated():
        raise UsageError(
            f"{flag} is given, but {path} is a file of robustkd, which states its own: leave it out"
        )


def of_attack(path: Path) -> Path:
    """Return the teacher's file in the folder of an attack; any other path as it is."""
    from robustkd.teacher.preprocessing import ATTACKED

    inner = path / ATTACKED
    return inner if os.path.lexists(inner) else path


def given_of(images: ImageFlags) -> set[str]:
    """Return the names of the flags that the user gives."""
    return {name for name, value in asdict(images).items() if value is not None}


def _data_of(spec: Spec, data: str, root: Path | None, images: ImageFlags) -> DataSource:
    """Open the data that the flags name, with missing settings taken from a model's file.

    Raises:
        InputError: If the model was made for other data.
    """
    from robustkd.data import SOURCES

    if data in SOURCES:
        return open_data(data, root, images)
    form: dict[str, Any] = {
        name: getattr(images, name) or getattr(spec, name) for name in ("resize", "interpolation")
    }
    size = spec.image_shape[1] if spec.image_shape[1] == spec.image_shape[2] else None
    return open_data(
        data,
        root,
        replace(
            images,
            image_size=images.image_size or size,
            grey=images.grey or spec.image_shape[0] == 1,
            crop=spec.crop if images.crop is None else images.crop,
            **form,
        ),
        classes=spec.class_names if is_folder(data) and spec.class_names else None,
    )
