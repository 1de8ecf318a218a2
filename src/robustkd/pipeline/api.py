"""The run as a function of Python, with the arguments of the command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from robustkd.core.errors import UsageError
from robustkd.core.files import at_home, free_name
from robustkd.core.method_names import Side
from robustkd.core.names import check_options
from robustkd.core.recorded_flags import recorded_flags
from robustkd.core.types import DataSource
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_names, check_paths, check_switches, plain_numbers
from robustkd.data import Reading
from robustkd.models import Classifier
from robustkd.pipeline.following import student_for_all
from robustkd.pipeline.job import DistillJob, audit_flag
from robustkd.pipeline.opening import architecture, form_flags, open_as_taught
from robustkd.pipeline.run import distill_file
from robustkd.report.results import Results
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.processes import start
from robustkd.training.recipes import with_defaults
from robustkd.training.sources import LEARNING, check_source


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run.

    Attributes:
        student: The student as stored in its file, in eval mode on the CPU.
        results: Content of ``results.json``.
        folder: Folder with ``student.safetensors``, ``results.json``, ``report.html``,
            ``MODEL_CARD.md`` and ``summary.md``.
    """

    student: Classifier
    results: Results
    folder: Path


@usual_state
def run(
    teacher: str | Path,
    data: str | Path | DataSource,
    student: str,
    *,
    arch: str | None = None,
    method: str = "default",
    out: str | Path | None = None,
    seed: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    teacher_taps: Sequence[str] = (),
    student_taps: Sequence[str] = (),
    keep_class_order: bool = False,
    teacher_key: str | None = None,
    allow_weak_sandbox: bool = False,
    augment: str | None = None,
    student_weights: str | Path | None = None,
    defence: str | None = None,
    on: Side | None = None,
    track: Sequence[str] | None = (),
    audit: bool = True,
    resume: bool = False,
    trust_run: bool = False,
    **training: Unpack[TrainingOptions],
) -> RunResult:
    """Distil a small student from an untrusted teacher, as ``robustkd distill`` does.

    The same arguments give the same student file as the command.

    Args:
        teacher: File of the teacher: safetensors, or a PyTorch checkpoint; or a folder with
            one: of the Hugging Face Hub, or of an attack. No code in it is run.
        data: Name of a data set, a folder of images, ``hf:NAME@REVISION``, or a data source such as
            :func:`robustkd.from_dataset` makes from any torch dataset.
        student: Architecture of the student, such as ``wrn-10-1`` or ``timm/resnet18``.
        arch: Architecture of the teacher; if None, the one that a file of RobustKD states, or that
            of timm in ``config.json`` beside the weights.
        method: Name of a method; ``robustkd list`` shows all.
        out: New folder for the run; if None, ``robustkd-run``, or the first of ``robustkd-run-2``,
            ``robustkd-run-3``, ... that does not exist.
        seed: Seed of everything random.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised. By
            default, the value in the file, else in ``config.json`` or ``preprocessor_config.json``
            beside it; else the published value of the architecture or that of the data, whichever
            gives the higher accuracy on validation images.
        std: Standard deviation of each channel, likewise.
        teacher_taps: Module paths of the teacher's stages. By default, those that
            ``robustkd list --taps`` shows.
        student_taps: Module paths of the student's stages, likewise. The last stages of teacher
            and student are paired.
        keep_class_order: If True, accept a teacher whose outputs seem to be in another order than
            the classes of the data.
        teacher_key: Key of the state dict in the teacher's file, such as ``state_dict_ema``. By
            default, the most accurate of those that fit the architecture is used.
        allow_weak_sandbox: If True, read the files even on a system without seccomp, where a flaw
            in the reader could be exploited.
        augment: Augmentation of the training images: ``none``, ``light`` or ``randaugment``. By
            default ``light``, made weaker if the teacher is much less accurate with it.
        student_weights: File of weights from which the student starts; by default they are random.
            It is read like the teacher's file, and may have a head of other classes.
        defence: Name of a published defence that cleans a network, in addition to what the method
            does; ``robustkd list`` shows all.
        on: Network that the defence cleans: ``teacher``, which is the default, or ``student``.
        track: Services that receive losses and accuracy of each epoch: ``wandb``, ``mlflow``.
        audit: If True, make the quick audit of teacher and student at the end; its record is
            ``results.records["audit"]``.
        resume: If True, continue the interrupted run in ``out``, which must have been started with
            the same arguments. The student file is that of a run without interruption, and
            a finished run is not changed.
        trust_run: If True, continue a run without verifying that runs of this user wrote its files.
        training: Options of :class:`robustkd.training.config.TrainingOptions`, such as ``epochs``,
            ``batch_size`` and ``lr``. Some defaults depend on the student's architecture and on the
            optimiser.

    Returns:
        The student, the results, and the run folder.

    Raises:
        UsageError: If a name is unknown, also that of a keyword argument; a number is out of range;
            ``out`` is not empty; or the run to continue has other settings.
        InputError: If the teacher's file or the data is damaged, or the teacher does not fit the
            data; or the run to continue has another teacher or other data, or its files were not
            written by a run of this user.
        TrainingError: If the loss of the training is no longer finite.
        WriteError: If a file of the run cannot be written.

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=200, validation=100, test=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> untrained = robustkd.build(spec, seed=0)
        >>> teacher = robustkd.distill(untrained, data, epochs=3).student
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     robustkd.save(teacher, f"{folder}/teacher.safetensors")
        ...     made = robustkd.run(
        ...         f"{folder}/teacher.safetensors",
        ...         data,
        ...         "wrn-10-1",
        ...         arch="wrn-10-1",
        ...         method="learned",
        ...         out=f"{folder}/my-run",
        ...         audit=False,
        ...         epochs=1,
        ...     )
        >>> [row.method for row in made.results.runs]
        ['teacher', 'learned']
    """
    _check_places(teacher, student, out=out, student_weights=student_weights)
    check_switches(audit=audit, resume=resume, trust_run=trust_run)
    if resume and out is None:
        raise UsageError("resume is given without out; name the folder of the interrupted run")
    if trust_run and not resume:
        raise UsageError("trust_run is given without resume; add it, or leave it out")
    check_names(teacher_taps=teacher_taps, student_taps=student_taps)
    own = (name for name in inspect.signature(run).parameters if name != "training")
    check_options(training, [*own, *TrainingOptions.__annotations__])
    place = Path(at_home(os.fspath(teacher)))
    known = architecture(place, arch)
    # Data that came from Python code have no name that a command would understand.
    named = None
    if isinstance(data, str | Path):
        named = at_home(os.fspath(data))
        source = open_as_taught(place, known, named, None, Reading(), ())
    else:
        source = data
    if not hasattr(source, "batches"):
        raise UsageError(
            f"data is of type {type(source).__name__}; expected a name, a folder or a data source, "
            "such as from_dataset makes from a torch dataset"
        )
    check_source(source, splits=(*LEARNING, "test"))
    if on is not None and defence is None:
        raise UsageError("on is given without defence; add it, or leave it out")
    tracked = (track,) if isinstance(track, str) else track or ()
    job = DistillJob(
        teacher=place,
        arch=known,
        student=student,
        method=method,
        training=TrainingConfig(**with_defaults(training, student)),
        seed=seed,
        mean=plain_numbers("mean", mean),
        std=plain_numbers("std", std),
        teacher_taps=tuple(teacher_taps),
        student_taps=tuple(student_taps),
        keep_class_order=keep_class_order,
        teacher_key=teacher_key,
        allow_weak_sandbox=allow_weak_sandbox,
        augment=augment,
        student_weights=None
        if student_weights is None
        else Path(at_home(os.fspath(student_weights))),
        defence=defence,
        on="teacher" if on is None else on,
    )
    folder = start().from_first(_free_folder) if out is None else Path(at_home(os.fspath(out)))
    flags = recorded_flags(
        {
            "teacher": job.teacher,
            "data": named,
            "student_weights": job.student_weights,
            **job.flags(),
            **form_flags(source),
            **audit_flag(audit),
        }
    )
    results = distill_file(
        job,
        source,
        folder,
        config=flags,
        resume=resume,
        trust=trust_run,
        track=tracked,
        audited=audit,
    )
    made = student_for_all(start(), folder, student)
    return RunResult(made.eval(), results, folder)


def _check_places(teacher: object, student: object, **others: object) -> None:
    """Raise an error for a network where the name of a file or of an architecture is expected.

    Raises:
        UsageError: Naming the first argument of another type.
    """
    for name, path, kinds, expected in (
        ("teacher", teacher, (str, os.PathLike), "the path of a file"),
        ("student", student, (str,), "the name of an architecture"),
    ):
        if not isinstance(path, kinds):
            raise UsageError(
                f"{name} is of type {type(path).__name__}; expected {expected}: distill takes "
                "networks"
            )
    check_paths(**others)


def _free_folder() -> Path:
    return free_name(Path("robustkd-run"))
