"""Lines about teacher, student and data that a run prints before its training."""

from __future__ import annotations

from robustkd.data.images.left_out import left_out_lines, skipped_files
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
        *left_out_lines(clean.name, skipped_files(clean)),
        choice.line,
        _method_line(job),
    ]
    return [line for line in lines if line]


def _method_line(job: DistillJob) -> str:
    """Return a line about the order of steps; empty if no defence is added to the method."""
    return "" if job.defence is None else f"method: {job.how.summary}"
