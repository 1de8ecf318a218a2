"""``robustkd audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from robustkd.cli.flags import (
    IMAGES,
    TEACHER,
    Arch,
    ImageFlags,
    TeacherFlags,
    check_new_files,
)
from robustkd.cli.opening import open_model
from robustkd.cli.output import print_json, print_plain, print_progress, print_words
from robustkd.core.errors import InputError, SuspicionError
from robustkd.core.validation import check_seed, check_share

if TYPE_CHECKING:
    from robustkd.evaluation.audit import Audit

_WIDTH = 80


def audit(
    model: Path,
    /,
    *,
    data: str,
    arch: Arch | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    probe: Annotated[bool, Parameter(negative="")] = False,
    level: float = 0.01,
    seed: int = 0,
    out: Path | None = None,
    pictures: Path | None = None,
    data_root: Path | None = None,
    teacher: TeacherFlags = TEACHER,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Look for evidence of an unknown backdoor in a student or a teacher, with clean images alone.

    The exit code is 4 if the model is suspicious, and 0 if there is no evidence or the audit is
    inconclusive. No evidence does not mean that there is no backdoor.

    Args:
        model: Model file written by robustkd, or the folder of a run; or a teacher's file or
            folder, as in ``distill``.
        data: Name or folder of the data, as in ``distill``.
        arch: Architecture of a teacher's file, or of your own code: ``package.module:callable``.
        quick: Search at one strength instead of two, train fewer reference networks, and leave out
            slow statistics that are not part of the verdict.
        probe: Also distil a small student and audit it, for backdoors that become active in
            students only.
        level: Accepted probability to call a model without a backdoor suspicious.
        seed: The same seed gives the same result.
        out: New JSON file with all measurements.
        pictures: New PNG file with a few validation images before and after the transformation that
            was found, and the amplified differences.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        teacher: How the file of a teacher is read.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    shares: dict[str, Any] = {"--level": level}
    check_share(one=False, **shares)
    check_seed(seed, "--seed")
    check_new_files({"--out": out, "--pictures": pictures})
    from robustkd.core.devices import default_device
    from robustkd.evaluation.audit import audit as audited

    network, source = open_model(model, arch, data, data_root, images, teacher)
    found = audited(
        network.to(default_device()), source, quick=quick, probe=probe, level=level, seed=seed
    )
    if as_json:
        print_json(found.record())
    else:
        print_audit(found)
    suspicious = found.verdict.word == "suspicious"
    try:
        _write(found, out, pictures)
    except InputError as error:  # or a WriteError
        # The exit code of a suspicious model matters more.
        if not suspicious:
            raise
        print_progress(f"robustkd: {error}")
    if suspicious:
        raise SuspicionError(suspicion(found))


def _write(found: Audit, out: Path | None, pictures: Path | None) -> None:
    """Write the measurements and the pictures, where files are given.

    Raises:
        InputError: If a file cannot be written.
    """
    from robustkd.core.files import write_json

    if out is not None:
        write_json(out, found.record())
    if pictures is not None:
        if found.pictures is None:
            print_progress(f"{pictures} was not written: no transformation was found")
        else:
            found.pictures.write_png(pictures)


def print_audit(found: Audit) -> None:
    """Print tables of the statistics, the verdict, and what to do next."""
    from robustkd.evaluation.audit import COUNTED

    _print_evidence(found)
    if found.probe is not None:
        print_words("A student that was distilled from the model:")
        _print_evidence(found.probe)
    shown = [found] if found.probe is None else [found, found.probe]
    if any(not COUNTED.issuperset(each.evidence) for each in shown):
        print_words(
            "* not part of the verdict: it finds too few backdoors, or accuses clean models"
        )
    for each in found.reference_accuracies:
        print_words(f"reference network: {each}")
    for line in verdict_lines(found):
        print_plain(line)


def _print_evidence(found: Audit) -> None:
    """Print a table of the statistics, and the accuracy."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from robustkd.evaluation.audit import COUNTED
    from robustkd.report.tables import p_value

    table = Table(box=None, pad_edge=False, width=_WIDTH)
    table.add_column("statistic", no_wrap=True)
    table.add_column("p-value", justify="right", no_wrap=True)
    table.add_column("class", max_width=14)
    table.add_column("what was found", overflow="fold")
    for name, each in found.evidence.items():
        mark = "" if name in COUNTED else " *"
        suspect = "-" if each.suspect is None else found.classes[each.suspect]
        table.add_row(f"{name}{mark}", p_value(each.p_value), Text(suspect), each.said)
    if found.evidence:
        Console(highlight=False, emoji=False).print(table)
    print_words(f"accuracy: {found.accuracy} of {found.accuracy.n} validation images")


def verdict_lines(found: Audit, *, of_student: bool = False) -> list[str]:
    """Return the verdict in plain words, and the next step.

    Args:
        found: The audit.
        of_student: Whether the model is a finished student, which is not distilled again.
    """
    from robustkd.evaluation.audit.led_share import FEW
    from robustkd.report.audits import verdict as told

    verdict = found.verdict
    line = f"Verdict: {told(verdict.word, found.suspected, verdict.reason)}"
    if verdict.word == "suspicious":
        advice = (
            [
                "Next: do not deploy this student; distil another one with the default method,",
                "      or from another teacher.",
            ]
            if of_student
            else [
                "Next: do not deploy this model; distil a student with robustkd distill,",
                "      and check the student with robustkd verify.",
            ]
        )
        return [line, *advice]
    if verdict.word == "inconclusive":
        if verdict.reason == FEW:
            return [line, "Next: audit it with more validation images."]
        longer = "run robustkd audit STUDENT" if of_student else "repeat without --quick"
        more = [f"Next: {longer}."] if found.quick and verdict.longer_helps else []
        return [line, *more]
    if of_student:
        return [line]
    return [
        line,
        "Next: distil it with robustkd distill all the same, since some backdoors become",
        "      active in a student only; then check the student with robustkd verify.",
    ]


def decisive_line(found: Audit) -> str | None:
    """Return what the statistic that made a model suspicious found; None if none did."""
    decisive = found.evidence.get(found.verdict.reason)
    return None if decisive is None else f"Found: {decisive.said}"


def suspicion(found: Audit) -> str:
    """Return the error message for a suspicious model."""
    of = "" if found.suspected is None else f" towards class {found.suspected!a}"
    return f"there is evidence of a backdoor{of}; see what was found above"
