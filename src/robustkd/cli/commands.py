"""The commands that have no module of their own: they parse, call and print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from robustkd.cli.flags import (
    IMAGES,
    TEACHER,
    Arch,
    ImageFlags,
    TeacherFlags,
    check_at_least,
)
from robustkd.cli.opening import open_model, tell_left_out
from robustkd.cli.output import (
    print_json,
    print_plain,
    print_progress,
    print_sections,
    print_words,
)
from robustkd.cli.targets import counted, target_of
from robustkd.core.errors import TrainingError, UsageError


def demo(
    *,
    data: str = "digits",
    seeds: int = 1,
    out: Path | None = None,
    data_root: Path | None = None,
) -> None:
    """Demonstrate attack and defence on real images, in a few minutes.

    A teacher is trained with a backdoor. Students are distilled from it by ordinary distillation
    and by RobustKD, one more student never meets the teacher, and all networks are measured on
    clean and on triggered images. The last lines tell the result in plain words.

    Args:
        data: ``digits`` (bundled) or ``fashion-mnist``.
        seeds: Number of repetitions, each with its own teacher.
        out: New folder for the results, the report and the models. Default: ``demo``, or the
            first of ``demo-2``, ``demo-3``, ... that does not exist.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
    """
    check_at_least("--seeds", seeds, 1)
    from robustkd import report
    from robustkd.benchmark import protocol, run_demo
    from robustkd.core.files import free_name

    setting = protocol(data)
    folder = out or free_name(Path("demo"))
    progress = Console(stderr=True, highlight=False, markup=False)
    run_demo(setting, folder, seeds=seeds, root=data_root, tell=progress.print)
    page = report.write_report(folder)[0]
    rows = report.aggregate(report.read(folder).runs)
    console = Console(highlight=False)
    console.print(report.console_table(rows))
    print_plain(f"Report: {page}")
    console.print(report.headline(rows))
    console.print(report.plain_words(rows))


def evaluate(
    model: Path,
    /,
    *,
    data: str,
    arch: Arch | None = None,
    trigger: Path | None = None,
    target: str | None = None,
    data_root: Path | None = None,
    teacher: TeacherFlags = TEACHER,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a student or a teacher on the test images, and under a trigger if one is known.

    Args:
        model: Model file written by robustkd, or the folder of a run; or a teacher's file or
            folder, as in ``distill``.
        data: Name or folder of the data, as in ``distill``.
        arch: Architecture of a teacher's file, or of your own code: ``package.module:callable``.
        trigger: Trigger file, as ``robustkd attack`` writes it.
        target: Name or number of the class to which triggered images are sent; ``next`` for the
            next class of each image. A class that is itself named next has to be given by its
            number. Default: the target in the file of ``--trigger``.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        teacher: How the file of a teacher is read.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    if target is not None and trigger is None:
        raise UsageError("--target is given without --trigger; add it, or leave both out")
    from robustkd.attacks import load_trigger
    from robustkd.evaluation.measurement import measure

    network, source = open_model(model, arch, data, data_root, images, teacher)
    known, led = load_trigger(trigger, data=source) if trigger is not None else (None, 0)
    if target is not None:
        led = target_of(target, source.classes)
    found = measure(network, source, trigger=known, target=led)
    if as_json:
        print_json(found.fields())
        return
    console = Console(highlight=False)
    console.print(f"ACC  {found.acc}  of {found.acc.n} test images")
    if found.asr is None or found.ra is None:
        console.print("ASR  not measured: no trigger was given")
    else:
        console.print(f"ASR  {found.asr}  of {counted(found.asr.n, led)}")
        console.print(f"RA   {found.ra}")


def bench(
    grid: Path,
    /,
    *,
    executor: Literal["local", "ray"] | None = None,
    workers: int | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    tables_only: bool = False,
) -> None:
    """Run a grid of attacks, methods, pairs and seeds, or continue an interrupted one.

    Args:
        grid: A YAML file, e.g. ``benchmarks/compact.yaml``.
        executor: ``local`` runs the cells on this machine, ``ray`` on a ray cluster. Default:
            ``local``.
        workers: Number of processes of the local executor. Default: 1.
        out: Folder of the results. Cells that already have a result in it are not run again,
            and these results are not verified, so continue only a folder that you trust.
            Default: ``results/GRID``, next to the grid's file.
        cache: Folder of trained networks. Default: ``cache/`` in the folder of ``--out``.
        tables_only: Only write the tables again from existing results.
    """
    _check_running({"--executor": executor, "--workers": workers, "--cache": cache}, tables_only)
    if executor == "ray" and workers is not None:
        raise UsageError(
            "--workers is given with --executor ray, which uses the whole cluster; leave it out"
        )
    processes = 1 if workers is None else workers
    check_at_least("--workers", processes, 1)
    from robustkd import report
    from robustkd.benchmark import executors, load_grid, run_grid, write_tables
    from robustkd.benchmark.folder_data import left_out

    cells = load_grid(grid)
    folder = out or grid.parent / "results" / grid.stem
    failures = f"see the errors in their files in {folder / 'cells'}"
    if not tables_only:
        for name, skipped in left_out(cells).items():
            tell_left_out(name, skipped)
        counts = run_grid(
            cells,
            folder,
            executor=executors.executor(executor or "local", workers=processes),
            cache=cache,
            tell=print_progress,
        )
        print_progress(
            f"{counts.done} cells completed, {counts.before} completed in earlier runs, "
            f"{counts.failed} failed"
        )
        if counts.failed == len(cells):
            raise TrainingError(f"all {counts.failed} cells failed; {failures}")
        if counts.before:
            print_progress(
                "results and networks of earlier runs are used without verification; continue "
                "only a folder that you trust"
            )
    tables = write_tables(cells, folder)
    Console(highlight=False).print(report.console_table(tables.rows))
    print_plain(f"Tables: {folder}")
    if tables.missing:
        print_progress(f"{len(tables.missing)} of {len(cells)} cells have no result yet")
    if tables.failed:
        raise TrainingError(f"{len(tables.failed)} cells failed; {failures}")


def _check_running(given: Mapping[str, object], tables_only: bool) -> None:
    """Raise an error for a flag about the running of cells, if none is run."""
    for flag, value in given.items():
        if tables_only and value is not None:
            raise UsageError(
                f"{flag} is given with --tables-only, which runs no cell; leave one of them out"
            )


def list_(
    *,
    taps: Arch | None = None,
    students: Annotated[bool, Parameter(negative="")] = False,
    max_params: str | None = None,
    image: Annotated[tuple[int, int, int] | None, Parameter(negative="")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """List data sets, architectures, methods, defences, losses and attacks.

    Args:
        taps: Show the taps, parameters and operations of this architecture instead.
        students: Show small architectures with parameters, operations and latency instead.
        max_params: With ``--students``: largest number of parameters, such as 300k or 1M.
        image: With ``--taps`` or ``--students``: channels, height and width of the images. Default:
            those of the published weights of ``--taps``, or 3 32 32.
        as_json: Print the list as JSON.
    """
    if max_params is not None and not students:
        raise UsageError("--max-params is given without --students; add it, or leave it out")
    if taps and students:
        raise UsageError("--taps and --students are both given; expected one of them")
    if image is not None:
        _check_image(image, used=bool(taps or students))
    if students:
        _list_students(image or (3, 32, 32), max_params, as_json=as_json)
        return
    from robustkd.cli import catalogue

    shown = catalogue.describe(taps, image_shape=image) if taps else catalogue.catalogue()
    if as_json:
        print_json(shown)
        return
    print_sections(shown)


def _check_image(image: tuple[int, int, int], *, used: bool) -> None:
    if not used:
        raise UsageError(
            "--image is given without --taps or --students; add one of them, or leave it out"
        )
    channels, *sides = image
    if channels not in (1, 3) or min(sides) < 1:
        raise UsageError(
            f"--image is {' '.join(map(str, image))}; expected 1 or 3 channels, then height and "
            "width of at least 1"
        )


def _list_students(image: tuple[int, int, int], most: str | None, *, as_json: bool) -> None:
    from robustkd.cli.students import number, students

    found = students(image, None if most is None else number(most))
    rows = sorted(found, key=lambda row: int(str(row["parameters"])))
    if as_json:
        print_json({"image": list(image), "students": rows})
        return
    if not rows:
        of = "" if most is None else f" of at most {number(most):,.0f} parameters"
        advice = "larger images" if most is None else "a larger --max-params"
        print_words(f"no student{of} fits images of {' x '.join(map(str, image))}; try {advice}")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("student")
    for name in ("parameters", "million MACs", "ms per image"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["student"]), f"{row['parameters']:,}", str(row["mmacs"]), str(row["latency_ms"])
        )
    Console(highlight=False).print(table)
