"""All commands but ``distill``: they parse, call, and print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from robustkd.cli.flags import (
    IMAGES,
    Arch,
    ImageFlags,
    check_at_least,
    check_training,
    open_data,
    open_data_of,
)
from robustkd.cli.output import print_json, print_plain, print_sections
from robustkd.core.errors import TrainingError


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
    check_at_least("--seeds", seeds, 1)
    from robustkd import report
    from robustkd.benchmark import protocol, run_demo
    from robustkd.core.files import free_name

    setting = protocol(data)
    folder = out or free_name(Path("demo"))
    progress = Console(stderr=True, highlight=False, markup=False)
    run_demo(setting, folder, seeds=seeds, root=data_root, tell=progress.print)
    page = report.write_html(folder)
    rows = report.aggregate(report.read(folder).runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    print_plain(f"Report: {page}")
    console.print(report.headline(rows))


def evaluate(
    student: Path,
    /,
    *,
    data: str,
    arch: Arch | None = None,
    trigger: Path | None = None,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
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
    source = open_data_of(model.spec, data, data_root, images)
    models.check_fits(
        model.spec,
        student,
        classes=len(source.classes),
        image_shape=source.image_shape,
        names=source.classes,
    )
    known, target = load_trigger(trigger) if trigger is not None else (None, 0)
    found = measure(model, source, trigger=known, target=target)
    if as_json:
        print_json(found.fields())
        return
    console = Console(highlight=False)
    console.print(f"ACC  {found.acc}  of {found.acc.n} test images")
    if found.asr is None or found.ra is None:
        console.print("ASR  not measured: no trigger was given")
    else:
        console.print(f"ASR  {found.asr}  of {found.asr.n} triggered images of other classes")
        console.print(f"RA   {found.ra}")


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
            not given. Cells with a result in it are not run again, and their results are taken
            as they are: continue only a folder that you trust.
        cache: Folder of the networks; ``cache`` in ``out`` when it is not given.
        tables_only: Only make the tables again from the results there are.
    """
    check_at_least("--workers", workers, 1)
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
            executor=executors.executor(executor, workers=workers),
            cache=cache,
            tell=progress.print,
        )
        progress.print(f"{counts.done} cells done, {counts.before} before, {counts.failed} failed")
        failed = counts.failed
        if counts.before:
            progress.print(
                "results and networks that were there before are taken as they are: continue only "
                "a folder that you trust"
            )
    rows = write_tables(cells, folder)
    Console(highlight=False).print(report.console_table(rows))
    print_plain(f"Tables: {folder}")
    if failed:
        raise TrainingError(f"{failed} cells failed; their files in {folder / 'cells'} say why")


def attack(
    name: str,
    /,
    *,
    arch: Arch,
    data: str,
    out: Path,
    target: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float | None = None,
    surrogate: Arch | None = None,
    settings: Annotated[dict[str, str], Parameter(name="--set", negative="")] | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Make a backdoored teacher and its trigger, for research.

    Args:
        name: The attack, see ``robustkd list``.
        arch: Architecture of the teacher.
        data: Name or folder of the attacker's clean data, as in ``distill``.
        out: New folder for teacher.safetensors, trigger.safetensors and results.json.
        target: Class that triggered images are sent to.
        epochs: Passes over the training images for the teacher's own training.
        batch_size: Images a step.
        lr: Learning rate at the start, of the attacker's own students as well; when it is not
            given 0.1, and 0.02 for MobileNets and ShuffleNets.
        surrogate: Architecture of the attacker's own students, for attacks that train any; the
            teacher's when it is not given.
        settings: Further arguments of the attack, e.g. ``--set.cap 0.1``.
        seed: The same seed gives the same teacher, byte for byte.
        data_root: Folder of the data set's files, where they are not found by themselves.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    check_training(epochs, batch_size, lr, seed)
    from robustkd.benchmark.attacked_teachers import attack_to_folder

    results = attack_to_folder(
        name,
        arch=arch,
        source=open_data(data, data_root, images),
        out=out,
        target=target,
        surrogate=surrogate or arch,
        settings={
            **(settings or {}),
            **{"epochs": epochs, "batch_size": batch_size},
            **({} if lr is None else {"lr": lr}),
        },
        seed=seed,
    )
    if as_json:
        print_json(results)
        return
    run = results["runs"][0]
    console = Console(highlight=False)
    console.print(f"ACC  {run['acc']:.1%}  of {run['n_acc']} test images")
    console.print(f"ASR  {run['asr']:.1%}  of {run['n_asr']} triggered images of other classes")
    print_plain(f"Teacher: {out / 'teacher.safetensors'}")


def list_(
    *,
    taps: Arch | None = None,
    image: tuple[int, int, int] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show what there is: data, models, methods, losses and attacks.

    Args:
        taps: Architecture whose taps, parameters and operations are shown instead.
        image: Channels, height and width of its images; its published ones, or 3 32 32.
        as_json: Print it as JSON.
    """
    from robustkd.cli import catalogue

    shown = catalogue.describe(taps, image_shape=image) if taps else catalogue.catalogue()
    if as_json:
        print_json(shown)
        return
    print_sections(shown)
