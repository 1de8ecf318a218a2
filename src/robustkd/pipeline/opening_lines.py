"""Lines about teacher, student and data that a run prints before its training."""

from __future__ import annotations

from robustkd.core.types import DataSource
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening import form_line
from robustkd.pipeline.prepare import Prepared


def opening_lines(job: DistillJob, ready: Prepared) -> list[str]:
    """Return what the user should check before the training, one line each."""
    clean, choice = ready.clean, ready.augmentation
    lines = [
        form_line(clean, ready.teacher.spec, ready.file.normalisation),
        ready.teacher_line,
        ready.student_line,
        _left_out(clean),
        choice.line,
        _method_line(job),
    ]
    return [line for line in lines if line]


def _method_line(job: DistillJob) -> str:
    """Return a line about the order of steps; empty if no defence is added to the method."""
    return "" if job.defence is None else f"method: {job.how.summary}"


def skipped_files(clean: DataSource) -> dict[str, int]:
    """Return the number of files and folders of the data that were left out, by kind."""
    return dict(getattr(clean, "skipped", {}))


def _left_out(clean: DataSource) -> str:
    """Return a line about files that were left out; empty if there are none."""
    skipped = skipped_files(clean)
    if not skipped:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    return f"data: left out of {clean.name}, since they are not images of a class: {kinds}"
