"""``robustkd distill``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter
from rich.console import Console

from robustkd.cli.flags import (
    IMAGES,
    Arch,
    Channels,
    ImageFlags,
    Paths,
    Services,
    TrainingFlags,
    check_training,
    choose_device,
)
from robustkd.cli.opening import given_of, reading_of
from robustkd.cli.output import (
    print_in_terminal,
    print_json,
    print_plain,
    print_progress,
    print_sections,
    print_words,
)
from robustkd.core.errors import InputError, UsageError
from robustkd.core.known_names import check_data, check_defence, is_folder
from robustkd.core.launch import launched
from robustkd.core.methods import find_method
from robustkd.core.recorded_flags import recorded_flags
from robustkd.pipeline.run_files import CONFIG, INPUTS

if TYPE_CHECKING:
    from robustkd.core.types import DataSource
    from robustkd.pipeline.job import DistillJob
    from robustkd.report import Results
    from robustkd.training.config import TrainingOptions


class ProcessOptions(NamedTuple):
    """How the process works: nothing here changes the student.

    Attributes:
        resume: Whether a run is resumed.
        trust: Whether its files are trusted without verification.
        track: Services that receive the records of the training.
        audit: Whether teacher and student are audited at the end.
        machine: Flags of the device and of the threads, which are not stored with the run.
    """

    resume: bool
    trust: bool
    track: tuple[str, ...]
    audit: bool
    machine: tuple[str, ...]


def distill(
    teacher: Path,
    *,
    arch: Arch | None = None,
    data: str,
    student: Arch,
    out: Path | None = None,
    method: str = "default",
    defence: str | None = None,
    on: Literal["teacher", "student"] | None = None,
    training: TrainingFlags = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    mean: Channels = (),
    std: Channels = (),
    teacher_taps: Paths = (),
    student_taps: Paths = (),
    keep_class_order: Annotated[bool, Parameter(negative="")] = False,
    teacher_key: str | None = None,
    augment: Literal["none", "light", "randaugment"] | None = None,
    student_weights: Path | None = None,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
    config: Path | None = None,
    resume: Path | None = None,
    trust_run: Annotated[bool, Parameter(negative="")] = False,
    allow_weak_sandbox: Annotated[bool, Parameter(negative="")] = False,
    track: Services = (),
    audit: bool = True,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Distil a small student from an untrusted teacher and your own clean images.

    Args:
        teacher: Teacher file: safetensors, or a PyTorch checkpoint; or a folder of the Hugging Face
            Hub with config.json and model.safetensors or pytorch_model.bin, or of an attack.
        arch: Architecture of the teacher, e.g. ``wrn-16-2`` or ``timm/resnet18``, see
            ``robustkd list``; ``package.module:callable`` for your own code. Default: the one
            that a file of RobustKD states, or that of timm in config.json next to the weights.
        data: Name of the clean data, see ``robustkd list``; or a folder of images with
            train/CLASS/, val/CLASS/ and test/CLASS/, or only CLASS/; or hf:NAME@REVISION.
        student: Architecture of the student.
        out: New folder for the student, its results and the report.
        method: Name of the method, see ``robustkd list``.
        defence: Name of a published defence that cleans a network in addition to what the method
            does, see ``robustkd list``. With ``--method mix``, it is the only defence.
        on: Network that the defence cleans: ``teacher``, before the student learns from it, or
            ``student``, after its training. Default: ``teacher``.
        training: How the student is trained.
        seed: The same seed gives the same student, byte for byte.
        device: Device of the training; ``auto`` takes a GPU if there is one.
        threads: Number of threads of the processor. Default: one per core.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised.
            Default: the value in the file, else in config.json or preprocessor_config.json beside
            it; else the published value of the architecture or that of the data, whichever gives
            the higher accuracy on validation images.
        std: Standard deviation of each channel, likewise.
        teacher_taps: Modules whose outputs are the teacher's stages. Default: those that
            ``robustkd list --taps`` shows.
        student_taps: Modules whose outputs are the student's stages. The last stages of teacher
            and student are paired.
        keep_class_order: Accept a teacher whose outputs seem to be in another order than the
            classes of the data.
        teacher_key: Key of the state dict in the teacher's file, such as ``state_dict_ema``; nested
            keys are joined by dots. Default: the state dict that fits the architecture; if several
            fit, the one with the highest accuracy on validation images.
        augment: Augmentation of the training images: ``light``, shifts or zooms and flips; or
            ``randaugment``, RandAugment after these; or ``none``. Default: ``light``, made weaker
            if the teacher is much less accurate with it.
        student_weights: File of weights from which the student starts, read like the teacher's; a
            head of other classes is replaced by a fresh one. Default: random weights.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        images: How images are read.
        config: YAML file of flags, such as the config.yaml of a run. Command-line flags override
            the file. The file of a run contains its learning rate: give ``--lr`` for another kind
            of student.
        resume: Folder of an interrupted run to continue.
        trust_run: Resume a run without verifying that your own runs wrote its checkpoint,
            cleaned teacher and results, for example because it was started on another machine.
            Configuration files cannot set this.
        allow_weak_sandbox: Read the teacher's file even on a system without seccomp (any but Linux
            on x86-64 or arm64), where a flaw in the reader could be exploited. Configuration
            files cannot set this.
        track: Also send losses and accuracy of each epoch to ``wandb`` (Weights & Biases) or
            ``mlflow``. Their own environment variables say where experiments are stored.
        audit: Make the quick audit of teacher and student at the end, see ``robustkd audit``. The
            exit code does not depend on it.
        dry_run: Load everything, take a few steps of each phase, and print the plan with time and
            memory; nothing is written.
        as_json: Print the results as JSON.
    """
    training = training or {}
    check_training(training, seed)
    choose_device(device, threads)
    if trust_run and resume is None:
        raise UsageError("--trust-run is given without --resume; add --resume RUN, or leave it out")
    if resume is not None:
        _check_places(teacher, data)
    _check_names(method, data, defence, on)
    if dry_run and launched().several:
        raise UsageError("--dry-run measures one process; start it without torchrun")
    folder = _folder(out, config, resume, dry_run=dry_run)
    # The imports below take seconds.
    print_in_terminal("reading the data and the teacher ...")
    from robustkd.pipeline.job import DistillJob, audit_flag
    from robustkd.pipeline.opening import architecture, form_flags, open_as_taught
    from robustkd.training.config import TrainingConfig
    from robustkd.training.recipes import with_defaults

    known = architecture(teacher, arch)
    training = with_values_left_out(training, config if resume is None else resume / CONFIG)
    job = DistillJob(
        teacher=teacher,
        arch=known,
        student=student,
        method=method,
        training=TrainingConfig(**with_defaults(training, student)),
        seed=seed,
        mean=mean,
        std=std,
        teacher_taps=teacher_taps,
        student_taps=student_taps,
        keep_class_order=keep_class_order,
        teacher_key=teacher_key,
        allow_weak_sandbox=allow_weak_sandbox,
        augment=augment,
        student_weights=student_weights,
        defence=defence,
        on=on or "teacher",
    )
    reading = reading_of(images)
    source = _opened(
        lambda: open_as_taught(teacher, known, data, data_root, reading, given_of(images))
    )
    if folder is None:
        from robustkd.pipeline.dry_run import rehearse

        plan = rehearse(job, source, audited=audit)
        (print_json if as_json else print_sections)(plan)
        return
    flags = {
        "teacher": teacher,
        "data": data,
        "student_weights": student_weights,
        **job.flags(),
        "data_root": data_root,
        **asdict(images),
        **form_flags(source),
        **audit_flag(audit),
    }
    options = ProcessOptions(
        resume=resume is not None,
        trust=trust_run,
        track=track,
        audit=audit,
        machine=(
            *(() if device == "auto" else ("--device", device)),
            *(() if threads is None else ("--threads", str(threads))),
        ),
    )
    _run(job, source, folder, flags, options, as_json=as_json)


def with_values_left_out(training: TrainingOptions, config: Path | None) -> TrainingOptions:
    """Complete the settings of a run of an older version, whose file leaves some values out.

    Defaults did not depend on the optimiser, and values that were the default of
    :class:`robustkd.training.config.TrainingConfig` were not written. Now, the file of a run with
    an optimiser of its own always has a weight decay.

    Args:
        training: Settings of the file and of the command line.
        config: The file; None if there is none.
    """
    from robustkd.core.yaml_files import read_yaml
    from robustkd.training.config import TrainingConfig

    if config is None or not os.path.lexists(config.with_name(INPUTS)):
        return training
    written = read_yaml(config)
    if not isinstance(written, dict) or "optimizer" not in written or "weight_decay" in written:
        return training
    plain: TrainingOptions = {
        "weight_decay": TrainingConfig.weight_decay,
        "warmup_epochs": TrainingConfig.warmup_epochs,
        "clip_grad": TrainingConfig.clip_grad,
    }
    return plain | training


def _check_names(method: str, data: str, defence: str | None, on: str | None) -> None:
    """Check names before torch is imported, which takes seconds.

    Raises:
        UsageError: If a name is unknown, or ``--on`` is given alone.
    """
    find_method(method)
    check_data(data)
    if defence is not None:
        check_defence(defence)
    if on is not None and defence is None:
        raise UsageError("--on is given without --defence; add it, or leave it out")


def _check_places(teacher: Path, data: str) -> None:
    """Check that teacher and images of a run are still where they were when it was started.

    Raises:
        InputError: If they are not; the message says how to name the new place.
    """
    if not os.path.lexists(teacher):
        raise InputError(
            f"{teacher} is not there any more; give the new place of the teacher before --resume"
        )
    if is_folder(data) and not os.path.isdir(data):
        raise InputError(
            f"{data} is not a folder any more; give the new place of the images with --data"
        )


def _opened(open_data: Callable[[], DataSource]) -> DataSource:
    """Open the data; of several processes, the first of each machine downloads what is missing."""
    if not launched().several:
        return open_data()
    from robustkd.training.processes import start

    return start().one_first(open_data)


def _folder(
    out: Path | None, config: Path | None, resume: Path | None, *, dry_run: bool
) -> Path | None:
    """Return the folder of the run; None for a dry run."""
    if resume is not None and dry_run:
        raise UsageError("--dry-run plans a new run; leave out either --dry-run or --resume")
    given = {"--out": out, "--config": config}
    for flag, value in given.items():
        if resume is not None and value is not None:
            raise UsageError(
                f"{flag} cannot be used with --resume, which takes it from the run; leave it out"
            )
    if resume is None and out is None and not dry_run:
        raise UsageError("--out is missing; give a new folder for the run")
    if out is not None and launched().rank == 0:
        from robustkd.core.files import check_free

        check_free(out)
    return None if dry_run else resume or out


def _run(
    job: DistillJob,
    source: DataSource,
    folder: Path,
    flags: Mapping[str, object],
    options: ProcessOptions,
    *,
    as_json: bool,
) -> None:
    from robustkd import report
    from robustkd.pipeline.run import distill_file

    results = distill_file(
        job,
        source,
        folder,
        config=recorded_flags(flags),
        resume=options.resume,
        trust=options.trust,
        track=options.track,
        audited=options.audit,
        further=options.machine,
        tell=print_progress,
    )
    if launched().rank:
        return  # the first process prints
    if as_json:
        print_json(results.content())
        return
    rows = report.aggregate(results.runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    print_plain(f"Student: {folder / 'student.safetensors'}")
    print_plain(f"Report: {folder / 'report.html'}")
    console.print(report.headline(rows))
    _print_audits(results, folder, flags, weak=job.allow_weak_sandbox)


def _print_audits(
    results: Results, folder: Path, flags: Mapping[str, object], *, weak: bool
) -> None:
    """Print the verdicts on teacher and student, and the next step."""
    from robustkd import report

    audits = report.read_records(results, folder / "results.json").audits
    for line in audits.lines:
        print_words(line)
    # A file names no code of the user's own, and does not weaken the sandbox.
    own = {name: value for name in ("arch", "student") if ":" in str(value := flags[name])}
    advice, command = report.next_step(
        results,
        audits,
        folder,
        data=_typed({name: flags[name] for name in ("data", "data_root", "split")}),
        arch=_typed({"arch": own.get("student")}),
        again=[*_typed(own), *(["--allow-weak-sandbox"] if weak else [])],
    )
    print_words(f"Next: {advice}")
    print_plain(f"  {command}")


def _typed(flags: Mapping[str, object]) -> list[str]:
    """Return flags with a value as words of a command."""
    given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items() if value]
    return [word for pair in given for word in pair]
