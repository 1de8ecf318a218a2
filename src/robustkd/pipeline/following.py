"""A run as seen by the processes that torchrun starts besides the first one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from robustkd import models
from robustkd.core.environment import environment
from robustkd.core.errors import UsageError
from robustkd.core.methods import Method
from robustkd.core.types import DataSource
from robustkd.models import Classifier
from robustkd.pipeline import run_folder
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import Prepared, identity, identity_of_file, prepare
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
    check_divisible(job.how, processes)
    ready = prepare(job, clean)
    check_alike(processes, inputs_of(job, ready))
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


def inputs_of(job: DistillJob, ready: Prepared) -> dict[str, Mapping[str, object]]:
    """Return everything that the student depends on, as JSON values by kind."""
    inputs: dict[str, Mapping[str, object]] = {
        "settings": job.settings(),
        "teacher": identity_of_file(ready.file, ready.teacher.spec),
        "data": identity(ready.clean, ready.fresh),
    }
    if ready.student_file is not None:
        inputs["student weights"] = identity_of_file(ready.student_file, ready.student.spec)
    return inputs


def check_alike(processes: Processes, inputs: Mapping[str, object]) -> None:
    """Check that all processes, which may run on several machines, have the same inputs.

    Raises:
        UsageError: If they do not; the message names the first kind that differs.
    """
    names = ("settings", "teacher", "data", "student weights")
    versions = {name: environment()[name] for name in ("robustkd", "torch")}
    processes.check_same({name: inputs.get(name) for name in names} | {"versions": versions})


def check_divisible(how: Method, processes: Processes) -> None:
    """Check, before a run begins, that several processes can train by a method.

    Raises:
        UsageError: If they cannot.
    """
    if processes.count > 1 and how.safeguard:
        raise UsageError(
            f"the method has the defence {how.safeguard!r} within the distillation, which needs "
            f"whole batches, but there are {processes.count} processes; expected one: start the "
            "command without torchrun"
        )


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
