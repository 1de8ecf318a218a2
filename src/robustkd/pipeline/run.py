"""The main job on one page: an untrusted teacher and clean images in, a student out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robustkd import models, report
from robustkd.core.environment import environment
from robustkd.core.files import check_free, read_json, write_json
from robustkd.core.types import DataSource
from robustkd.data import split_text
from robustkd.pipeline import run_folder
from robustkd.pipeline.prepare import identity, prepare
from robustkd.pipeline.student import make_student
from robustkd.training.inference import accuracy_on

_log = logging.getLogger(__name__)


def distill_file(
    teacher_file: Path,
    *,
    arch: str,
    clean: DataSource,
    student_arch: str,
    out: Path,
    method: str = "default",
    training: Mapping[str, Any],
    seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    teacher_taps: tuple[str, ...] = (),
    student_taps: tuple[str, ...] = (),
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """From a teacher's file to a folder with the student, its figures and the report.

    Args:
        teacher_file: The untrusted teacher.
        arch: Its architecture, in the user's word, not the file's.
        clean: The user's clean images.
        student_arch: Architecture of the student.
        out: New folder for the run.
        method: Name of a preset.
        training: Further arguments of :func:`robustkd.student.distillation.distill`.
        seed: Of everything random; the same seed gives the same student file.
        mean: Of each channel of the pixels that the teacher was trained with; where neither this
            nor the file says it, that which is published for the architecture or that of the
            clean images: whichever makes the teacher more accurate on the validation images.
        std: The standard deviation, likewise.
        teacher_taps: Module paths of the teacher's stages; none to find them.
        student_taps: Of the student's; the last stages of both are paired.
        config: The command's flags, for the run's ``config.yaml``.
        resume: Go on with the run in ``out``, which began with the same arguments; it ends in the
            same student file as if it had never stopped.
        tell: Gets a line on the teacher before the training.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: If a name is unknown, a number out of range, ``out`` is not empty, or a run
            that goes on began otherwise.
        InputError: If the teacher's file is not what it was said to be, or knows nothing of the
            data; or if either is not what the run began with.
        WriteError: If the disk is full; the last checkpoint is whole.
    """
    if not resume:
        check_free(out)
    choices: dict[str, Any] = {
        **{"method": method, "seed": seed, "mean": mean, "std": std},
        **{"teacher_taps": teacher_taps, "student_taps": student_taps},
    }
    ready = prepare(teacher_file, arch=arch, clean=clean, student_arch=student_arch, **choices)
    setting = {"data": clean.name, "pair": f"{arch} to {student_arch}", "seed": seed}
    # Now every image is read once, so that damaged ones stop nothing later.
    untrusted = _untriggered_run(setting, clean, "teacher", ready.teacher, 0.0)
    begun = {
        "settings": {"arch": arch, "student": student_arch, **choices, **training},
        "teacher": {"sha256": ready.file.sha256},
        "data": identity(clean, ready.student.spec),
    }
    split = split_text(clean)
    with run_folder.opened(out, begun=begun, config=config, split=split, resume=resume) as run:
        if run.finished:
            tell(f"{out} was finished before")
            return read_json(out / run_folder.RESULTS)
        tell(ready.line(clean))
        _log.info("%s", ready.line(clean))
        made = make_student(
            ready.teacher, ready.student, clean, ready.how, training=training, seed=seed, run=run
        )
        run.interrupts.no_longer_wait()
        provenance = {
            "method": method,
            "data": clean.name,
            "seed": seed,
            "training": dict(training),
        }
        models.save(made.student, out / run_folder.STUDENT, provenance=provenance)  # type: ignore[arg-type]
        results = {
            "runs": [
                untrusted,
                _untriggered_run(setting, clean, method, made.student, made.seconds),
            ],
            "environment": environment(),
            "config": {"arch": arch, "student": student_arch, **provenance},
            "records": {
                "teacher_file": ready.file.record(),
                **made.record,
                "classes": list(clean.classes),
            },
        }
        write_json(out / run_folder.RESULTS, results)
        report.write_html(out)
    return results


def _untriggered_run(
    setting: Mapping[str, Any], clean: DataSource, method: str, model: nn.Module, seconds: float
) -> dict[str, Any]:
    """One row of the results; without a trigger there is no success rate to measure."""
    acc = accuracy_on(model, clean, "test")
    return {
        **setting,
        "attack": "trigger unknown",
        "method": method,
        "acc": acc.value,
        "asr": None,
        "ra": None,
        "params": models.parameters(model),
        "seconds": seconds,
        "n_acc": acc.n,
    }
