"""``robustkd distill``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter
from rich.console import Console

from robustkd.cli.flags import IMAGES, Arch, Channels, ImageFlags, Paths, check_training, open_data
from robustkd.cli.output import print_json, print_plain, print_sections
from robustkd.core.errors import UsageError

if TYPE_CHECKING:
    from robustkd.core.types import DataSource
    from robustkd.pipeline.job import DistillJob


class Going(NamedTuple):
    """Whether a run is resumed, and whether it may be one that somebody else has written."""

    resume: bool
    trust: bool


def distill(
    teacher: Path,
    *,
    arch: Arch,
    data: str,
    student: Arch,
    out: Path | None = None,
    method: str = "default",
    epochs: int = 30,
    batch_size: int = 64,
    lr: float | None = None,
    seed: int = 0,
    mean: Channels = (),
    std: Channels = (),
    teacher_taps: Paths = (),
    student_taps: Paths = (),
    keep_class_order: Annotated[bool, Parameter(negative="")] = False,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
    config: Path | None = None,
    resume: Path | None = None,
    trust_run: Annotated[bool, Parameter(negative="")] = False,
    allow_weak_sandbox: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Make a small student from an untrusted teacher and your own clean images.

    Args:
        teacher: The teacher's file: safetensors, or a PyTorch checkpoint (zip format).
        arch: Architecture of the teacher, e.g. ``wrn-16-2`` or ``timm/resnet18``, see
            ``robustkd list``; ``package.module:callable`` for your own code.
        data: Name of the clean data, see ``robustkd list``; or a folder of images, with
            train/CLASS/, val/CLASS/ and test/CLASS/, or with CLASS/ alone; or hf:NAME@REVISION.
        student: Architecture of the student.
        out: New folder for the student, its figures and the report.
        method: How the student is made, see ``robustkd list``.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate at the start; when it is not given 0.1, and 0.02 for MobileNets and
            ShuffleNets.
        seed: The same seed gives the same student, byte for byte.
        mean: Mean of each channel of the pixels, in [0, 1], that the teacher was trained with;
            when neither this nor its file says it, the published one of its architecture or
            that of the data, whichever makes it more accurate on validation images.
        std: Their standard deviation, likewise.
        teacher_taps: Modules whose outputs are the teacher's stages, see ``robustkd list --taps``,
            which says what is taken when none is named.
        student_taps: Those of the student; of both, the last that have a partner are used.
        keep_class_order: Accept a teacher whose outputs seem to be in another order than the
            classes of the data.
        data_root: Folder of the data set's files, where they are not found by themselves.
        images: How images are read.
        config: YAML file of flags, such as the config.yaml of a run; command-line flags override
            it. A run's file says its learning rate: another kind of student may want ``--lr``.
        resume: Folder of a run that was interrupted or killed; it goes on as it was begun.
        trust_run: Resume a run although its checkpoint, cleaned teacher and results were not
            written by a run of yours, or on another machine. No configuration file can set this.
        allow_weak_sandbox: Read the teacher's file even on a system without seccomp (any but Linux
            on x86-64 or arm64), where its reader could do harm if it had a flaw. No configuration
            file can set this.
        dry_run: Load everything, take a few steps of each phase, and print the plan with time and
            memory; no folder is made.
        as_json: Print the results as JSON.
    """
    check_training(epochs, batch_size, lr, seed)
    if trust_run and resume is None:
        raise UsageError("--trust-run goes with --resume; leave it out")
    folder = _folder(out, config, resume, dry_run=dry_run)
    from robustkd.models import learning_rate
    from robustkd.pipeline.job import DistillJob
    from robustkd.training.config import TrainingConfig

    lr = learning_rate(student) if lr is None else lr
    job = DistillJob(
        teacher=teacher,
        arch=arch,
        student=student,
        method=method,
        training=TrainingConfig(epochs=epochs, batch_size=batch_size, lr=lr),
        seed=seed,
        mean=mean,
        std=std,
        teacher_taps=teacher_taps,
        student_taps=student_taps,
        keep_class_order=keep_class_order,
        allow_weak_sandbox=allow_weak_sandbox,
    )
    source = open_data(data, data_root, images)
    if folder is None:
        from robustkd.pipeline.dry_run import rehearse

        plan = rehearse(job, source)
        (print_json if as_json else print_sections)(plan)
        return
    flags = {
        "teacher": teacher,
        "data": data,
        **job.settings(),
        "data_root": data_root,
        **asdict(images),
    }
    how = Going(resume=resume is not None, trust=trust_run)
    _run(job, source, folder, flags, how, as_json=as_json)


def _folder(
    out: Path | None, config: Path | None, resume: Path | None, *, dry_run: bool
) -> Path | None:
    """Where the run is; None for no run."""
    given = {"--out": out, "--config": config, "--dry-run": dry_run or None}
    for flag, value in given.items():
        if resume is not None and value is not None:
            raise UsageError(f"{flag} does not go with --resume, which has its own; leave it out")
    if resume is None and out is None and not dry_run:
        raise UsageError("--out is missing; give a new folder for the run")
    if out is not None:
        from robustkd.core.files import check_free

        check_free(out)
    return None if dry_run else resume or out


def _run(
    job: DistillJob,
    source: DataSource,
    folder: Path,
    flags: Mapping[str, object],
    how: Going,
    *,
    as_json: bool,
) -> None:
    from robustkd import report
    from robustkd.pipeline.run import distill_file

    progress = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    results = distill_file(
        job,
        source,
        folder,
        config=_resolved(flags),
        resume=how.resume,
        trust=how.trust,
        tell=progress.print,
    )
    if as_json:
        print_json(results)
        return
    rows = report.aggregate(report.read(folder).runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    print_plain(f"Student: {folder / 'student.safetensors'}")
    console.print(report.headline(rows))


def _resolved(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags as they run again from any folder: paths in full, and nothing that is not set."""
    from robustkd.data import is_folder

    found: dict[str, object] = {}
    for name, value in flags.items():
        if isinstance(value, Path) or (name == "data" and is_folder(str(value))):
            found[name] = os.path.abspath(str(value))
        elif isinstance(value, str):
            found[name] = str(value)
        elif value not in (None, ()):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
