"""``robustkd export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from robustkd.cli.flags import IMAGES, Arch, ImageFlags
from robustkd.cli.opening import open_student
from robustkd.cli.output import print_json, print_plain, print_progress, print_words

_NAMES = {"torch": "torch", "onnx": "ONNX", "int8": "ONNX int8"}


def export(
    student: Path,
    /,
    *,
    data: str,
    out: Path,
    trigger: Path | None = None,
    int8: bool = True,
    max_int8_drop: float | None = None,
    arch: Arch | None = None,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Export a student to files that run without robustkd, and measure them.

    The files are ONNX and int8 ONNX for onnxruntime, a traced program for torch.export.load, and a
    plain state dict if the network is one of torchvision or timm. If the predictions of the ONNX
    file differ from those of the student, or the int8 file misses --max-int8-drop, the exit code
    is 5 and no folder is written.

    Args:
        student: Model file written by robustkd, or the folder of a run.
        data: Name or folder of the data, as in ``distill``.
        out: New folder for the files and export.json.
        trigger: Trigger file, as ``robustkd attack`` writes it.
        int8: Also quantise to int8, by the recipe with the highest validation accuracy.
        max_int8_drop: Largest loss of accuracy of the int8 file compared with the student on the
            test images, a fraction. Default: any loss.
        arch: Architecture, if it is your own code: ``package.module:callable``.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        images: How images are read; missing settings are taken from the student's file.
        as_json: Print the content of export.json.
    """
    from robustkd.attacks import load_trigger
    from robustkd.core.files import check_free
    from robustkd.export import export_student
    from robustkd.export.installed import check_installed
    from robustkd.export.parity import check_most
    from robustkd.pipeline.interrupts import Interrupts

    check_most(max_int8_drop, int8=int8)
    check_installed()
    check_free(out)
    model, source = open_student(student, arch, data, data_root, images)
    known, target = load_trigger(trigger, data=source) if trigger is not None else (None, 0)
    # SIGTERM becomes an exception, so that no temporary folder is left behind.
    with Interrupts().watched():
        found = export_student(
            model,
            source,
            out,
            trigger=known,
            target=target,
            int8=int8,
            max_int8_drop=max_int8_drop,
            tell=print_progress,
        )
    if as_json:
        print_json(found)
        return
    _print(found, out)


def _print(found: Mapping[str, Any], out: Path) -> None:
    console = Console(highlight=False, emoji=False)
    console.print(_table(found))
    student, parity = found["student"], found["parity"]["onnx"]
    print_words(
        f"{student['parameters']:,} parameters, {_million(student['macs'])} million MACs; "
        f"ONNX predicts the class of torch for {parity['agreement']:.2%} of {parity['n']} "
        f"validation images; logits differ by at most {parity['largest_difference']:.1e}"
    )
    if found["int8"] is not None:
        print_plain(f"int8 recipe: {found['int8']['chosen']}")
    machine = found["machine"]
    print_words(
        f"Latency of one image on this machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{_instructions(machine['int8_instructions'])}"
    )
    for note in found["notes"]:
        print_words(f"Note: {note}")
    print_plain(f"Files: {out}")


def _million(count: int | None) -> str:
    """Return a number in millions, for a sentence.

    >>> _million(3_052_160), _million(None)
    ('3.05', 'an unknown number of')
    """
    return "an unknown number of" if count is None else f"{count / 1e6:,.2f}"


def _instructions(found: Sequence[str] | None) -> str:
    """Describe the CPU instructions for int8.

    >>> _instructions(["asimddp", "i8mm"])
    'int8 instructions asimddp, i8mm'
    >>> _instructions([]), _instructions(None)
    ('no int8 instructions', 'int8 instructions unknown')
    """
    if not found:
        return "int8 instructions unknown" if found is None else "no int8 instructions"
    return f"int8 instructions {', '.join(found)}"


def _table(found: Mapping[str, Any]) -> Table:
    """Return a table with a row for torch and for each ONNX file."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "ACC %", "ASR %", "kB", "p50 ms", "p95 ms", "all cores", "load ms", "MiB"):
        table.add_column(column, justify="right" if column else "left")
    for kind, row in found["measured"].items():
        cells = [
            f"{100 * row['acc']:.1f}",
            "-" if row["asr"] is None else f"{100 * row['asr']:.1f}",
        ]
        running = found["running"].get(kind)
        if running is not None:
            one, *_, most = (running["latency"][0], running["latency"][-1])
            cells += [f"{found['files'][kind]['bytes'] / 1e3:,.0f}"]
            cells += [f"{time:.3g}" for time in (one["p50_ms"], one["p95_ms"], most["p50_ms"])]
            cells += [f"{one['load_ms']:.3g}", f"{running['peak_mib']:.0f}"]
        table.add_row(_NAMES[kind], *cells)
    return table
