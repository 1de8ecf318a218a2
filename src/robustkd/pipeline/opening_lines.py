"""Lines about teacher, student and data that a run prints before its training."""

from __future__ import annotations

from robustkd.core.types import DataSource
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening import form_line
from robustkd.pipeline.prepare import Prepared


def opening_lines(job: DistillJob, ready: Prepared) -> list[str]:
    """Return what the user should check before the training, one line each."""
    clean, choice = ready.clean, ready.augmentation
    return [
        *form_line(clean, ready.teacher.spec, ready.file.normalisation),
        ready.line(clean),
        *ready.student_line(),
        *_left_out(clean),
        *([choice.line] if choice.line else []),
        *_method_line(job),
    ]


def _method_line(job: DistillJob) -> list[str]:
    """Return a line about the order of steps if a defence is added to the method."""
    return [] if job.defence is None else [f"method: {job.how.summary}"]


def skipped_files(clean: DataSource) -> dict[str, int]:
    """Return the number of files and folders of the data that were left out, by kind."""
    return dict(getattr(clean, "skipped", {}))


def _left_out(clean: DataSource) -> list[str]:
    """Return a line about files that were left out, if there are any."""
    skipped = skipped_files(clean)
    if not skipped:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    return [f"data: left out of {clean.name}, since they are not images of a class: {kinds}"]
