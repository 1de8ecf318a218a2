"""``robustkd verify``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from robustkd.cli.auditing import decisive_line, suspicion, verdict_lines
from robustkd.cli.flags import IMAGES, TEACHER, Arch, ImageFlags, TeacherFlags, check_new_files
from robustkd.cli.opening import open_student, student_of, tell_left_out
from robustkd.cli.output import print_json, print_plain, print_progress, print_words
from robustkd.cli.targets import target_of
from robustkd.cli.teachers import MeasuredTeacher, measure_teacher, recorded_in
from robustkd.core.errors import (
    InconclusiveError,
    InputError,
    SuspicionError,
    ThresholdError,
    UsageError,
)

if TYPE_CHECKING:
    from robustkd.core.targets import Target
    from robustkd.data.images.unlabelled import FolderImages
    from robustkd.evaluation.verification import Recorded, Verification
    from robustkd.models import Spec

_MOST_CLASSES = 20
_SUCCESS = 0.5
"""Attack success rate above which a note says so if there is no threshold."""


def verify(
    student: Path,
    /,
    *,
    data: str,
    trigger: Path | None = None,
    triggered: Path | None = None,
    target: str | None = None,
    teacher: Path | None = None,
    teacher_arch: Arch | None = None,
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    max_asr: float | None = None,
    audit: bool = True,
    arch: Arch | None = None,
    out: Path | None = None,
    data_root: Path | None = None,
    reading: TeacherFlags = TEACHER,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Check a student before it is used: accuracy, drop, quick audit, and a known attack.

    The exit code is 0 if the student passes, 4 if the audit finds evidence of a backdoor, 5 if a
    threshold is missed, and 6 if no threshold is missed but the audit is inconclusive.

    Args:
        student: Model file written by robustkd, or the folder of a run.
        data: Name or folder of the data, as in ``distill``.
        trigger: Trigger file, as ``robustkd attack`` writes it.
        triggered: Folder of images that have the trigger, or of folders of such images named by
            their classes, of any depth.
        target: Name or number of the class to which triggered images are sent; ``next`` for the
            next class of each image, for which the folders in ``--triggered`` must be named by
            their classes. A class that is itself named next has to be given by its number. Default:
            the target in the file of ``--trigger``.
        teacher: Teacher's file, to measure its accuracy. If STUDENT is the folder of a run, and
            this is its teacher, it is read as in the run, unless ``--mean``, ``--std`` or
            ``--teacher-key`` is given. Default: if STUDENT is the folder of a run, the teacher's
            accuracy in its results, as long as the student still has the accuracy stated there.
        teacher_arch: Architecture of the teacher's file.
        min_accuracy: Smallest accuracy, a fraction.
        max_drop: Largest loss of accuracy compared with the teacher, a fraction.
        max_asr: Largest attack success rate, a fraction.
        audit: Make the quick audit.
        arch: Architecture of the student, if it is your own code: ``package.module:callable``.
        out: New JSON file with all measurements.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        reading: How the file of the teacher is read.
        images: How images are read; missing settings are taken from the student's file.
        as_json: Print the results as JSON.
    """
    _check_together(trigger, triggered, target)
    alone = [*(["--teacher-arch"] if teacher_arch is not None else []), *reading.stated()]
    if alone and teacher is None:
        raise UsageError(f"{alone[0]} is given without --teacher; give both, or neither")
    check_new_files({"--out": out})
    from robustkd.attacks import load_trigger
    from robustkd.core.devices import default_device
    from robustkd.evaluation.verification import Thresholds
    from robustkd.evaluation.verification import verify as verified

    thresholds = Thresholds(min_accuracy, max_drop, max_asr)
    if teacher is None:
        _check_teacher_known(student, max_drop)
    model, source = open_student(student, arch, data, data_root, images)
    known, led = load_trigger(trigger, data=source) if trigger is not None else (None, 0)
    if target is not None:
        led = target_of(target, source.classes)
    shown = None if triggered is None else _images(triggered, model.spec, source.classes, led)
    strict, beside = max_drop is not None, None
    if teacher is not None:
        beside = measure_teacher(
            teacher, teacher_arch, source, reading, student=student, strict=strict
        )
    found = verified(
        model.to(default_device()),
        source,
        thresholds=thresholds,
        teacher=None if beside is None else beside.accuracy,
        recorded=_recorded(student) if beside is None else None,
        trigger=known,
        triggered=None if shown is None else shown.images,
        triggered_labels=None if shown is None else shown.labels,
        target=led,
        audited=audit,
    )
    found = _with_reason(found, student)
    _warn(found, beside)
    record = {
        "student": _file_record(student),
        "data": source.name,
        **found.record(),
        "teacher_file": None if beside is None else beside.record(),
    }
    if as_json:
        print_json(record)
    else:
        _print(found, source.classes, measured=beside is not None)
    _write(found, record, out)
    _end(found)


def _check_together(trigger: Path | None, triggered: Path | None, target: str | None) -> None:
    """Raise an error for flags of an attack that do not belong together."""
    if trigger is not None and triggered is not None:
        raise UsageError("--trigger and --triggered are both given; expected one of them")
    if triggered is not None and target is None:
        raise UsageError("--triggered is given without --target; add it")
    if target is not None and trigger is None and triggered is None:
        raise UsageError("--target is given without --trigger or --triggered; add one of them")


def _file_record(student: Path) -> dict[str, object]:
    """Return the path and the SHA-256 of the student's file, as JSON values."""
    from robustkd.core.files import sha256_of

    path = student_of(student)
    return {"path": str(path), "sha256": sha256_of(path)}


def _write(found: Verification, record: Mapping[str, object], out: Path | None) -> None:
    """Write the measurements, if a file is given.

    Raises:
        InputError: If the file cannot be written. If the student fails, it is only told, since the
            exit code of the failure matters more.
    """
    from robustkd.core.files import write_json

    try:
        if out is not None:
            write_json(out, record)
    except InputError as error:  # or a WriteError
        if found.outcome == "passed":
            raise
        print_progress(f"robustkd: {error}")


def _images(folder: Path, spec: Spec, classes: tuple[str, ...], target: Target) -> FolderImages:
    """Read triggered images of other classes than the target as the student reads its images."""
    from robustkd.data import Reading
    from robustkd.data.images.listing import shown
    from robustkd.data.images.unlabelled import read_images

    reading = Reading(
        channels=1 if spec.image_shape[0] == 1 else 3,
        crop=spec.crop,
        resize=spec.resize,
        interpolation=spec.interpolation,
    )
    skipped = Counter[str]()
    found = read_images(
        folder,
        size=spec.image_shape[1],
        reading=reading,
        classes=classes,
        without="" if isinstance(target, str) else classes[target],
        labelled=isinstance(target, str),
        skipped=skipped,
    )
    tell_left_out(shown(folder), skipped)
    if found.damaged:
        print_progress(f"{found.damaged} files in {folder} are left out: they cannot be decoded")
    return found


def _recorded(student: Path) -> Recorded | None:
    """Return the accuracies of student and teacher in the results of a run; None without any.

    Raises:
        InputError: If the results are not those that the run wrote.
    """
    from robustkd.pipeline.run_files import RESULTS

    if not (student / RESULTS).is_file():
        return None
    from robustkd import report
    from robustkd.pipeline.run_checks import unchanged

    if not unchanged(student, RESULTS):
        raise InputError(
            f"{student / RESULTS} is not the file that its run wrote; restore it, or measure the "
            "teacher with --teacher"
        )
    return recorded_in(report.read(student))


def _check_teacher_known(student: Path, max_drop: float | None) -> None:
    """Raise an error for a limit of the drop if the run has not measured its teacher yet."""
    from robustkd.pipeline.run_files import RESULTS, check_finished

    if max_drop is not None:
        check_finished(student, RESULTS)


def _with_reason(found: Verification, student: Path) -> Verification:
    """State that the drop is unknown because the run is not finished, if this is so."""
    from robustkd.pipeline.run_files import RESULTS, unfinished

    if found.teacher is None and not found.unknown and unfinished(student, RESULTS):
        return replace(found, unknown=f"{student} is a run that is not finished")
    return found


def _warn(found: Verification, beside: MeasuredTeacher | None) -> None:
    """Print a line if the teacher of the run has another accuracy than in the run."""
    if beside is None or beside.recorded is None:
        return
    if line := beside.recorded.disagreement(found.accuracy, beside.accuracy):
        print_progress(f"warning: {line}")


def _print(found: Verification, classes: tuple[str, ...], *, measured: bool) -> None:
    origin = "" if measured else ", in the results of the run"
    print_words(f"ACC    {found.accuracy}  of {found.accuracy.n} test images")
    order = sorted(
        (place for place, each in enumerate(found.by_class) if each.n),
        key=lambda place: found.by_class[place].value,
    )
    for place in order[:_MOST_CLASSES]:
        print_plain(f"       {found.by_class[place]}  class {classes[place]}")
    if len(order) > _MOST_CLASSES:
        print_words(f"       and {len(order) - _MOST_CLASSES} classes with higher accuracy")
    if found.drop is not None and found.teacher is not None:
        print_words(f"DROP   {_beside_teacher(*found.drop)}")
        print_words(f"       teacher: {found.teacher}  of {found.teacher.n} test images{origin}")
    else:
        print_words(f"DROP   not measured: {found.unknown or 'no teacher was given'}")
    if found.asr is not None:
        print_words(f"ASR    {found.asr}  of {found.asr.n} triggered images")
    else:
        print_words("ASR    not measured: no trigger was given")
    # The threshold that ends the command is named by its last line.
    missed = found.missed[1:] if found.outcome == "missed" else found.missed
    for line in (*missed, *found.close, *_without_threshold(found)):
        print_words(f"NOTE   {line}")
    if found.audit is not None:
        if what := decisive_line(found.audit):
            print_words(what)
        for line in verdict_lines(found.audit, of_student=True):
            print_plain(line)
    if found.outcome == "passed":
        print_plain("Next: robustkd export writes the files for a device.")


def _beside_teacher(lost: float, ends: tuple[float, float]) -> str:
    """Return the loss of accuracy with its interval, in points.

    >>> _beside_teacher(0.021, (0.01, 0.03)), _beside_teacher(-0.02, (-0.03, 0.01))
    ('2.1 points [1.0, 3.0] below the teacher', '2.0 points [-1.0, 3.0] above the teacher')
    """
    low, high = (100 * end for end in ends)
    if lost < 0:
        return f"{-100 * lost:.1f} points [{-high:.1f}, {-low:.1f}] above the teacher"
    return f"{100 * lost:.1f} points [{low:.1f}, {high:.1f}] below the teacher"


def _without_threshold(found: Verification) -> Iterator[str]:
    """Yield sentences about poor results that no threshold refuses."""
    from robustkd.report.drop import is_large

    limits, own = found.thresholds, found.accuracy.value
    if found.drop is not None and limits.max_drop is None:
        lost, (lowest, _) = found.drop
        if is_large(lowest, student=own, teacher=own + lost):
            yield "the loss of accuracy is large; set a limit with --max-drop"
    if found.asr is not None and limits.max_asr is None and found.asr.value > _SUCCESS:
        yield "the trigger leads most images to the target; set a limit with --max-asr"


def _end(found: Verification) -> None:
    """Raise the error whose exit code tells the outcome; return if the student passes.

    Raises:
        SuspicionError: If the audit finds evidence of a backdoor.
        ThresholdError: If a threshold is missed.
        InconclusiveError: If the audit is inconclusive.
    """
    if found.outcome == "suspicious" and found.audit is not None:
        raise SuspicionError(suspicion(found.audit))
    if found.outcome == "missed":
        raise ThresholdError(found.missed[0])
    if found.outcome == "inconclusive" and found.audit is not None:
        verdict = found.audit.verdict
        longer = "run robustkd audit without --quick"
        advice = longer if verdict.longer_helps else "--no-audit leaves the audit out"
        raise InconclusiveError(f"the audit is inconclusive: {verdict.reason}; {advice}")
