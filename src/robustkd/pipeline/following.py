"""A run as seen by the processes that torchrun starts besides the first one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from robustkd import models
from robustkd.core.types import DataSource
from robustkd.models import Classifier
from robustkd.pipeline import run_folder
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import prepare
from robustkd.pipeline.student import make_student
from robustkd.report.results import Results
from robustkd.training.processes import Processes, following


def follow(job: DistillJob, clean: DataSource, processes: Processes) -> Results:
    """Take part in the training of a student; the first process writes the files.

    Args:
        job: Description of the run, as in the first process.
        clean: The user's clean images.
        processes: The processes of the run.

    Returns:
        The results of the first process.
    """
    ready = prepare(job, clean)
    with following():
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
    content = processes.from_first((folder / run_folder.STUDENT).read_bytes)
    if processes.first:
        return models.load(folder / run_folder.STUDENT, arch=arch)
    with tempfile.TemporaryDirectory() as own:
        copy = Path(own) / run_folder.STUDENT
        copy.write_bytes(content)
        return models.load(copy, arch=arch)
