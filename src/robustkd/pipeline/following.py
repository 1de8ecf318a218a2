"""A run as seen by the processes that torchrun starts besides the first one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from robustkd import models
from robustkd.core.environment import environment
from robustkd.core.errors import TrainingError
from robustkd.core.types import DataSource
from robustkd.models import Classifier
from robustkd.pipeline import run_files, run_folder
from robustkd.pipeline.interrupts import Interrupts
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import inputs_of, prepare
from robustkd.pipeline.student import make_student
from robustkd.report.results import Results
from robustkd.student.distillation import check_divisible
from robustkd.training.processes import Processes


def follow(job: DistillJob, clean: DataSource, processes: Processes) -> Results:
    """Take part in the training of a student; the first process writes the files.

    Args:
        job: Description of the run, as in the first process.
        clean: The user's clean images.
        processes: The processes of the run.

    Returns:
        The results of the first process.
    """
    check_divisible(job.how.losses, job.how.safeguard, processes)
    ready = prepare(job, clean)
    check_alike(processes, inputs_of(job, ready))
    with _following():
        if not run_is_finished(processes):
            make_student(
                ready.teacher,
                ready.student,
                ready.clean,
                job.how,
                training=job.training,
                seed=job.seed,
                processes=processes,
            )
        return results_for_all(processes, None)


@contextmanager
def _following() -> Iterator[None]:
    """Leave the answer to Ctrl-C and SIGTERM to the first process while the block lasts.

    The first process finishes its step, writes a checkpoint and stops, whereupon the next exchange
    with it fails here. A second signal ends this process at once.

    Raises:
        KeyboardInterrupt: If the processes have stopped after such a signal.
    """
    interrupts = Interrupts()
    interrupts.deferring = True
    with interrupts.watched():
        try:
            yield
        except TrainingError:
            if not interrupts.asked:
                raise


def check_alike(processes: Processes, inputs: Mapping[str, object]) -> None:
    """Check that all processes, which may run on several machines, have the same inputs.

    Raises:
        UsageError: If they do not; the message names the first kind that differs.
    """
    names = ("settings", "teacher", "data", "student weights")
    versions = {name: environment()[name] for name in ("robustkd", "torch")}
    processes.check_same({name: inputs.get(name) for name in names} | {"versions": versions})


def run_is_finished(processes: Processes, run: run_folder.Run | None = None) -> bool:
    """Return whether the run of the first process is finished."""
    return processes.from_first(lambda: run is not None and run.finished)


def results_for_all(processes: Processes, results: Results | None) -> Results:
    """Return the results of the first process."""
    found = processes.from_first(lambda: results)
    if found is None:
        raise ValueError("the first process has no results")
    return found


def student_for_all(processes: Processes, folder: Path, arch: str) -> Classifier:
    """Return the student from the folder of the first process, on the CPU."""
    content = processes.from_first((folder / run_files.STUDENT).read_bytes)
    if processes.first:
        return models.load(folder / run_files.STUDENT, arch=arch)
    with tempfile.TemporaryDirectory() as own:
        copy = Path(own) / run_files.STUDENT
        copy.write_bytes(content)
        return models.load(copy, arch=arch)
