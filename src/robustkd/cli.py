"""The commands: they parse, call, and print; no logic.

Nothing heavy is imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import App, CycloptsError, Parameter, Token
from rich.console import Console
from rich.table import Table

from robustkd.errors import RobustKDError, TrainingError, UsageError

if TYPE_CHECKING:
    from robustkd.types import DataSource

_USAGE, _INTERRUPTED = 2, 130
# Twice a seed and one more still fit into torch's generators.
_LARGEST_SEED = 2**62 - 1


def _named(_type: object, tokens: Sequence[Token]) -> str:
    """An architecture; the user's own code if it was typed, never if it stands in a file."""
    (token,) = tokens
    if ":" not in token.value or token.source != "cli":
        return token.value
    from robustkd.models import OwnCode

    return OwnCode(token.value)


_Arch: TypeAlias = Annotated[str, Parameter(converter=_named)]
_Channels: TypeAlias = Annotated[
    tuple[float, ...], Parameter(consume_multiple=True, negative="", show_default=False)
]

app = App(
    name="robustkd",
    help="Distil a small, accurate student from a teacher that you do not trust.",
    version_flags=["--version"],
    # An interrupt is told as every other end is, in `main`.
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on stderr and an exit code, no traceback."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        app(
            sys.argv[1:] if arguments is None else arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        line = " ".join(str(error).split())
        errors.print(f"robustkd: {line} (see robustkd --help)")
        sys.exit(_USAGE)
    except RobustKDError as error:
        errors.print(f"robustkd: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("robustkd: interrupted")
        sys.exit(_INTERRUPTED)


@Parameter(name="*")
@dataclass(frozen=True)
class ImageFlags:
    """How the images of a folder are read.

    Attributes:
        image_size: Height and width that the models want; not needed where all images have it.
        grey: Read one channel instead of three.
        crop: Share of each image's shorter side that is kept, of the centred square.
        flip: Whether training may mirror images.
        class_names: Text file with the class folders in the order of the teacher's outputs.
        split: The split.json of an earlier run on the same folder.
        workers: Processes that decode images.
        streaming: Decode anew in every pass, or keep all images in memory; else by their size.
    """

    image_size: int | None = None
    grey: Annotated[bool, Parameter(negative="")] = False
    crop: float = 1.0
    flip: bool = True
    class_names: Path | None = None
    split: Path | None = None
    workers: int | None = None
    streaming: bool | None = None


_IMAGES = ImageFlags()


@app.command
def demo(
    *,
    data: str = "digits",
    seeds: int = 1,
    out: Path | None = None,
    data_root: Path | None = None,
) -> None:
    """Show the whole story on real images, in about two minutes on two cores.

    A teacher gets a backdoor; students are distilled from it the ordinary way and by RobustKD;
    all are measured on clean and on triggered images.

    Args:
        data: ``digits`` (bundled) or ``fashion-mnist``.
        seeds: Repetitions, each with its own teacher.
        out: New folder for results.json, report.html and the models; when it is not given,
            ``demo``, or the first of ``demo-2``, ``demo-3``, ... that is free.
        data_root: Folder of the data set's files, where they are not found by themselves.
    """
    _check_at_least("--seeds", seeds, 1)
    from robustkd import report, runs
    from robustkd.benchmark import protocol, run_demo

    setting = protocol(data)
    folder = out or runs.free_name(Path("demo"))
    progress = Console(stderr=True, highlight=False, markup=False)
    run_demo(setting, folder, seeds=seeds, root=data_root, tell=progress.print)
    page = report.write_html(folder)
    rows = report.aggregate(report.read(folder).runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    _print_plain(f"Report: {page}")
    console.print(report.headline(rows))


@app.command
def distill(
    teacher: Path,
    /,
    *,
    arch: _Arch,
    data: str,
    student: _Arch,
    out: Path,
    method: str = "default",
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = 0.1,
    seed: int = 0,
    mean: _Channels = (),
    std: _Channels = (),
    data_root: Path | None = None,
    images: ImageFlags = _IMAGES,
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
        lr: Learning rate at the start.
        seed: The same seed gives the same student, byte for byte.
        mean: Mean of each channel of the pixels, in [0, 1], that the teacher was trained with;
            when neither this nor its file says it, the published one of its architecture or
            that of the data, whichever makes it more accurate on validation images.
        std: Their standard deviation, likewise.
        data_root: Folder of the data set's files, where they are not found by themselves.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    _check_training(epochs, batch_size, lr, seed)
    from robustkd import report
    from robustkd.pipeline import distill_file

    results = distill_file(
        teacher,
        arch=arch,
        clean=_open_data(data, data_root, images),
        student_arch=student,
        out=out,
        method=method,
        training={"epochs": epochs, "batch_size": batch_size, "lr": lr},
        seed=seed,
        mean=mean,
        std=std,
    )
    if as_json:
        _print_json(results)
        return
    rows = report.aggregate(report.read(out).runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    _print_plain(f"Student: {out / 'student.safetensors'}")
    console.print(report.headline(rows))


@app.command
def evaluate(
    student: Path,
    /,
    *,
    data: str,
    arch: _Arch | None = None,
    trigger: Path | None = None,
    data_root: Path | None = None,
    images: ImageFlags = _IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a student on the test images, and under a trigger where one is known.

    Args:
        student: A model's file, written by robustkd.
        data: Name or folder of the data, as in ``distill``.
        arch: Architecture, where that is your own code: ``package.module:callable``.
        trigger: A trigger's file, written beside a backdoored teacher.
        data_root: Folder of the data set's files, where they are not found by themselves.
        images: How images are read.
        as_json: Print the figures as JSON.
    """
    from robustkd import models
    from robustkd.attacks import load_trigger
    from robustkd.benchmark import measure

    model = models.load(student, arch=arch)
    source = _open_data(data, data_root, images)
    models.check_fits(
        model.spec, student, classes=len(source.classes), image_shape=source.image_shape
    )
    known, target = load_trigger(trigger) if trigger is not None else (None, 0)
    found = measure(model, source, trigger=known, target=target)
    if as_json:
        _print_json(found.fields())
        return
    console = Console(highlight=False)
    console.print(f"ACC  {found.acc}  of {found.acc.n} test images")
    if found.asr is None or found.ra is None:
        console.print("ASR  not measured: no trigger was given")
    else:
        console.print(f"ASR  {found.asr}  of {found.asr.n} triggered images of other classes")
        console.print(f"RA   {found.ra}")


@app.command
def bench(
    grid: Path,
    /,
    *,
    executor: Literal["local", "ray"] = "local",
    workers: int = 1,
    out: Path | None = None,
    cache: Path | None = None,
    tables_only: bool = False,
) -> None:
    """Run a grid of attacks, methods, pairs and seeds; go on where it was interrupted.

    Args:
        grid: A YAML file, e.g. ``benchmarks/compact.yaml``.
        executor: Who runs the cells: this machine's processes, or a ray cluster.
        workers: Processes of the local executor.
        out: Folder of the results; ``results/`` and the grid's name beside the file when it is
            not given. Cells with a result in it are not run again.
        cache: Folder of the networks; ``cache`` in ``out`` when it is not given.
        tables_only: Only make the tables again from the results there are.
    """
    _check_at_least("--workers", workers, 1)
    from robustkd import report
    from robustkd.benchmark import executors, load_grid, run_grid, write_tables

    cells = load_grid(grid)
    folder = out or grid.parent / "results" / grid.stem
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    failed = 0
    if not tables_only:
        counts = run_grid(
            cells,
            folder,
            cache=cache or folder / "cache",
            executor=executors.executor(executor, workers=workers),
            tell=progress.print,
        )
        progress.print(f"{counts.done} cells done, {counts.before} before, {counts.failed} failed")
        failed = counts.failed
    rows = write_tables(cells, folder)
    Console(highlight=False).print(report.console_table(rows))
    _print_plain(f"Tables: {folder}")
    if failed:
        raise TrainingError(f"{failed} cells failed; their files in {folder / 'cells'} say why")


@app.command
def attack(
    name: str,
    /,
    *,
    arch: _Arch,
    data: str,
    out: Path,
    target: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = 0.1,
    surrogate: _Arch | None = None,
    settings: Annotated[dict[str, str], Parameter(name="--set", negative="")] | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    images: ImageFlags = _IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Make a backdoored teacher and its trigger, for research.

    Args:
        name: The attack, see ``robustkd list``.
        arch: Architecture of the teacher.
        data: Name or folder of the attacker's clean data, as in ``distill``.
        out: New folder for teacher.safetensors, trigger.safetensors and results.json.
        target: Class that triggered images shall get.
        epochs: Passes over the training images for the teacher's own training.
        batch_size: Images a step.
        lr: Learning rate at the start.
        surrogate: Architecture of the attacker's own students, for attacks that train any; the
            teacher's when it is not given.
        settings: Further arguments of the attack, e.g. ``--set.cap 0.1``.
        seed: The same seed gives the same teacher, byte for byte.
        data_root: Folder of the data set's files, where they are not found by themselves.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    _check_training(epochs, batch_size, lr, seed)
    from robustkd.benchmark.teachers import attack_to_folder

    results = attack_to_folder(
        name,
        arch=arch,
        source=_open_data(data, data_root, images),
        out=out,
        target=target,
        surrogate=surrogate or arch,
        settings={**(settings or {}), "epochs": epochs, "batch_size": batch_size, "lr": lr},
        seed=seed,
    )
    if as_json:
        _print_json(results)
        return
    run = results["runs"][0]
    console = Console(highlight=False)
    console.print(f"ACC  {run['acc']:.1%}  of {run['n_acc']} test images")
    console.print(f"ASR  {run['asr']:.1%}  of {run['n_asr']} triggered images of other classes")
    _print_plain(f"Teacher: {out / 'teacher.safetensors'}")


@app.command(name="list")
def list_(
    *,
    taps: _Arch | None = None,
    image: tuple[int, int, int] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show what there is: data, models, methods, losses and attacks.

    Args:
        taps: Architecture whose taps, parameters and operations are shown instead.
        image: Channels, height and width of its images; its published ones, or 3 32 32.
        as_json: Print it as JSON.
    """
    from robustkd import catalogue

    shown = catalogue.describe(taps, image_shape=image) if taps else catalogue.catalogue()
    if as_json:
        _print_json(shown)
        return
    console = Console(highlight=False)
    for kind, entries in shown.items():
        lines = Table.grid(padding=(0, 2))
        lines.add_column(min_width=16, no_wrap=True)
        lines.add_column()
        for name, summary in entries.items():
            lines.add_row(f"  {name}", summary)
        console.print(f"[bold]{kind}[/bold]", lines, sep="\n")


def _check_training(epochs: int, batch_size: int, lr: float, seed: int) -> None:
    _check_at_least("--epochs", epochs, 1)
    _check_at_least("--batch-size", batch_size, 2)
    _check_at_least("--seed", seed, 0)
    if seed > _LARGEST_SEED:
        raise UsageError(f"--seed is {seed}; expected at most {_LARGEST_SEED}")
    if not 0 < lr < math.inf:
        raise UsageError(f"--lr is {lr}; expected a finite number above 0")


def _open_data(data: str, root: Path | None, images: ImageFlags) -> DataSource:
    from robustkd.data import Reading, open_source

    reading = Reading(
        image_size=images.image_size,
        channels=1 if images.grey else 3,
        crop=images.crop,
        flip=images.flip,
        workers=images.workers,
        streaming=images.streaming,
        classes=images.class_names,
        split=images.split,
    )
    return open_source(data, root=root, reading=reading)


def _check_at_least(flag: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UsageError(f"{flag} is {value}; expected at least {lowest}")


def _print_plain(line: str) -> None:
    """A line with a path in it, whose brackets and colons mean nothing more."""
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(line)


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
