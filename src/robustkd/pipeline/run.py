"""The main job on one page: an untrusted teacher and clean images in, a student out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from robustkd import models, report
from robustkd.core.environment import environment
from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import check_free, free_name, write_json
from robustkd.core.names import LONGEST_NAME, unfit
from robustkd.core.types import DataSource
from robustkd.data import open_source, split_text
from robustkd.models import Classifier
from robustkd.pipeline import run_folder
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import Prepared, identity, prepare
from robustkd.pipeline.student import Made, make_student
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.inference import accuracy_on

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A run that has ended.

    Attributes:
        student: The student, in eval mode on the CPU, as its file holds it.
        results: The content of ``results.json``.
        folder: Folder with ``student.safetensors``, ``results.json`` and ``report.html``.
    """

    student: Classifier
    results: Mapping[str, Any]
    folder: Path


def run(
    teacher: str | Path,
    data: str | Path | DataSource,
    student: str,
    *,
    arch: str,
    method: str = "default",
    out: str | Path | None = None,
    seed: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    keep_class_order: bool = False,
    **training: Unpack[TrainingOptions],
) -> Finished:
    """Make a small student from an untrusted teacher, as ``robustkd distill`` does.

    The same arguments give the same student file as the command.

    Args:
        teacher: File of the teacher: safetensors, or a PyTorch checkpoint in zip format. No code in
            it is run.
        data: Name of a data set, a folder of images, ``hf:NAME@REVISION``, or a data source such as
            :func:`robustkd.from_dataset` makes from any torch dataset.
        student: Architecture of the student, such as ``wrn-10-1`` or ``timm/resnet18``.
        arch: Architecture of the teacher.
        method: Name of a method; ``robustkd list`` has them.
        out: New folder for the run; if None, ``robustkd-run``, or the first of ``robustkd-run-2``,
            ``robustkd-run-3``, ... that does not exist.
        seed: Seed of everything random.
        mean: Mean of each channel that the teacher's images were normalised with, in [0, 1].
        std: Standard deviation of each channel, likewise.
        keep_class_order: If True, accept a teacher whose outputs seem to be in another order than
            the classes of the data.
        training: Fields of :class:`robustkd.training.config.TrainingConfig` such as ``epochs``,
            ``batch_size`` and ``lr``. By default the learning rate is the architecture's own.

    Raises:
        UsageError: If a name is unknown, a number is out of range, or ``out`` is not empty.
        InputError: If the teacher's file or the data is damaged, or both do not fit together.
        TrainingError: If the training's loss stops being finite.
    """
    source = open_source(os.fspath(data)) if isinstance(data, str | Path) else data
    training.setdefault("lr", models.learning_rate(student))
    job = DistillJob(
        teacher=Path(teacher),
        arch=arch,
        student=student,
        method=method,
        training=TrainingConfig(**training),
        seed=seed,
        mean=tuple(mean),
        std=tuple(std),
        keep_class_order=keep_class_order,
    )
    folder = free_name(Path("robustkd-run")) if out is None else Path(out)
    results = distill_file(job, source, folder, config=_flags(job, data))
    made = models.load(folder / run_folder.STUDENT, arch=student)
    return Finished(made.eval(), results, folder)


def _flags(job: DistillJob, data: str | Path | DataSource) -> dict[str, object]:
    """The flags of the command that does the same; a data source of the user's own has none."""
    named = data if isinstance(data, str | Path) else data.name
    place = os.path.abspath(named) if isinstance(data, Path) else str(named)
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in job.settings().items()
        if value != ()
    }
    return {"teacher": os.path.abspath(job.teacher), "data": place, **settings}


def distill_file(
    job: DistillJob,
    clean: DataSource,
    out: Path,
    *,
    config: Mapping[str, object] | None = None,
    resume: bool = False,
    trust: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make a folder with the student, its results and the report from a teacher's file.

    Args:
        job: What is distilled from what, and how.
        clean: The user's clean images.
        out: New folder for the run.
        config: The command's flags, for the run's ``config.yaml``.
        resume: If True, continue the run in ``out``, which was begun with the same job and data. It
            ends in the same student file as if it had never stopped.
        trust: If True, resume also a run whose files were not written by this user.
        tell: Called with one line on the teacher before the training.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: If a name is unknown, a number is out of range, ``out`` is not empty, or the run
            was begun with other settings.
        InputError: If the teacher's file is not what it was said to be or does not fit the data, or
            the run was begun with another teacher or other data, or its files were not written by
            a run of this user.
        WriteError: If the disk is full; the last checkpoint is complete.
    """
    if not resume:
        check_free(out)
    _check_names(job, clean, config or {})
    ready = prepare(job, clean)
    # Every image is read once before the training, so that damaged ones are found now.
    untrusted = _untriggered_row(job, clean, "teacher", ready.teacher, 0.0)
    begun: dict[str, Mapping[str, object]] = {
        "settings": job.settings(),
        "teacher": {"sha256": ready.file.sha256},
        "data": identity(clean, ready.student.spec),
    }
    split = split_text(clean)
    with run_folder.opened(
        out, begun=begun, config=config, split=split, resume=resume, trust=trust
    ) as run:
        if run.finished:
            tell(f"{out} was finished before")
            return run.results()
        tell(ready.line(clean))
        _log.info("%s", ready.line(clean))
        made = make_student(
            ready.teacher,
            ready.student,
            clean,
            job.how,
            training=job.training,
            seed=job.seed,
            run=run,
        )
        run.interrupts.no_longer_wait()
        student = _untriggered_row(job, clean, job.method, made.student, made.seconds)
        return _write_results(job, clean, ready, made, [untrusted, student], run)


def _check_names(job: DistillJob, clean: DataSource, config: Mapping[str, object]) -> None:
    """Refuse, before the training, names that could not be written down after it.

    Raises:
        UsageError: A name of the data or an architecture is one.
        InputError: A path is one.
    """
    for what, name in (("data", clean.name), ("pair", _pair(job))):
        if (expected := unfit(name)) is not None:
            raise UsageError(
                f"the name of the {what} is {_brief(name)}; expected {expected}: rename it"
            )
    for path in (str(job.teacher), *config.values()):
        if isinstance(path, str) and not _is_unicode(path):
            raise InputError(f"{_brief(path)} is a path that is no UTF-8; rename what is there")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _brief(name: str) -> str:
    return ascii(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")


def _pair(job: DistillJob) -> str:
    return f"{job.arch} to {job.student}"


def _write_results(
    job: DistillJob,
    clean: DataSource,
    ready: Prepared,
    made: Made,
    rows: list[dict[str, Any]],
    run: run_folder.Run,
) -> dict[str, Any]:
    """Write the student, ``results.json`` and the report."""
    provenance = job.provenance(clean.name)
    with run.writing(run_folder.STUDENT) as path:
        models.save(ready.student, path, provenance=provenance)
    results = {
        "runs": rows,
        "environment": environment(),
        "config": {"arch": job.arch, "student": job.student, **provenance},
        "records": {
            "teacher_file": ready.file.record(),
            **made.record,
            "classes": list(clean.classes),
        },
    }
    with run.writing(run_folder.RESULTS) as path:
        write_json(path, results)
    report.write_html(run.folder)
    return results


def _untriggered_row(
    job: DistillJob, clean: DataSource, method: str, model: nn.Module, seconds: float
) -> dict[str, Any]:
    """One row of the results; without a trigger there is no success rate to measure."""
    acc = accuracy_on(model, clean, "test")
    return {
        "data": clean.name,
        "pair": _pair(job),
        "seed": job.seed,
        "attack": "trigger unknown",
        "method": method,
        "acc": acc.value,
        "asr": None,
        "ra": None,
        "params": models.parameters(model),
        "seconds": seconds,
        "n_acc": acc.n,
    }
