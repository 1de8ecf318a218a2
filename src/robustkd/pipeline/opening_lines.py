"""Lines about teacher, student and data that a run prints before its training."""

from __future__ import annotations

from robustkd.data.images.left_out import left_out_lines, skipped_files
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
        *left_out_lines(clean.name, skipped_files(clean)),
        *([choice.line] if choice.line else []),
        *_method_line(job),
    ]


def _method_line(job: DistillJob) -> list[str]:
    """Return a line about the order of steps if a defence is added to the method."""
    return [] if job.defence is None else [f"method: {job.how.summary}"]
