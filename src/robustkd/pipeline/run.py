"""A run: from an untrusted file and clean images to a folder with a student and its report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.core.files import check_free
from robustkd.core.names import unfit
from robustkd.core.types import DataSource
from robustkd.data import split_text
from robustkd.pipeline import run_folder
from robustkd.pipeline.experiments import check_services, experiments
from robustkd.pipeline.facts import measure_clean
from robustkd.pipeline.following import (
    check_alike,
    follow,
    results_for_all,
    run_is_finished,
)
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening_lines import opening_lines
from robustkd.pipeline.prepare import inputs_of, prepare
from robustkd.pipeline.run_checks import check_same_images, named_as_before
from robustkd.pipeline.run_results import pair_name, write_results
from robustkd.pipeline.student import make_student
from robustkd.report.results import Results
from robustkd.student.distillation import check_divisible
from robustkd.training.compiling import check_compiler
from robustkd.training.processes import start

_log = logging.getLogger(__name__)


def distill_file(
    job: DistillJob,
    clean: DataSource,
    out: Path,
    *,
    config: Mapping[str, object] | None = None,
    resume: bool = False,
    trust: bool = False,
    track: Sequence[str] = (),
    audited: bool = True,
    further: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Results:
    """Distil a student from a teacher's file into a run folder with results and report.

    If torchrun has started several processes, they train the student together, and the first one
    writes the files.

    Args:
        job: Description of the run.
        clean: The user's clean images.
        out: New folder for the run.
        config: Flags of the command, which are written to ``config.yaml``.
        resume: If True, continue the run in ``out``, which must have been started with the same job
            and data. The student file is the same as that of an uninterrupted run.
        trust: If True, resume without verifying that runs of this user wrote the files.
        track: Services that receive the records of the training, ``wandb`` or ``mlflow``. The
            student does not depend on them.
        audited: If True, make the quick audit of teacher and student at the end.
        further: Flags and values of the command that ``config`` does not have, for the command that
            resumes an interrupted run.
        tell: Function that receives one line about the teacher before the training.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: If a name is unknown, a number is out of range, ``out`` is not empty, or the run
            was started with other settings.
        InputError: If the teacher's file is refused or does not fit the architecture or the data,
            the run was started with another teacher or other data, or its files were not
            written by a run of this user.
        WriteError: If the disk is full; the last checkpoint is complete.
    """
    processes = start()
    if job.training.compile:
        check_compiler()
    if resume:
        clean = named_as_before(out, clean)
        check_same_images(out, clean)
    if not processes.first:
        return follow(job, clean, processes)
    check_divisible(job.how.losses, job.how.safeguard, processes)
    if not resume:
        check_free(out)
    services = check_services(track)
    _check_names(job, clean, config or {})
    ready = prepare(job, clean)
    clean = ready.clean
    # Every image is read once before the training, so that damaged images are found early.
    untrusted = measure_clean(ready.teacher, clean)
    inputs = inputs_of(job, ready)
    check_alike(processes, inputs)
    split = split_text(clean)
    with run_folder.opened(
        out,
        inputs=inputs,
        config=config,
        split=split,
        resume=resume,
        trust=trust,
        weak=job.allow_weak_sandbox,
        further=[*further, *(word for name in services for word in ("--track", name))],
    ) as run:
        if run_is_finished(processes, run):
            tell(f"{out} is already finished")
            return results_for_all(processes, run.results())
        for line in opening_lines(job, ready):
            tell(line)
            _log.info("%s", line)
        with experiments(services, out, job.settings(), tell) as watching:
            run.watch(watching)
            made = make_student(
                ready.teacher,
                ready.student,
                clean,
                job.how,
                training=job.training,
                seed=job.seed,
                run=run,
                processes=processes,
            )
            run.interrupts.no_longer_wait()
            results = write_results(job, clean, ready, made, untrusted, run, audited=audited)
            for experiment in watching:
                experiment.log({"test/acc": results.runs[-1].acc})
        return results_for_all(processes, results)


def _check_names(job: DistillJob, clean: DataSource, config: Mapping[str, object]) -> None:
    """Check, before the training, that all names can be written to the results.

    Raises:
        UsageError: If a name of the data or of an architecture cannot be written.
        InputError: If a path cannot be written.
    """
    for what, name in (("data", clean.name), ("pair", pair_name(job))):
        if (expected := unfit(name)) is not None:
            raise UsageError(
                f"the name of the {what} is {quoted(name)}; expected {expected}: rename it"
            )
    for path in (str(job.teacher), *config.values()):
        if isinstance(path, str) and not _is_unicode(path):
            raise InputError(f"{quoted(path)} is not a path in UTF-8; rename the file or folder")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
