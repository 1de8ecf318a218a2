"""The recommended next step after a run, as words and a command that can be copied."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from robustkd.core.method_names import split_name
from robustkd.report.aggregate import aggregate
from robustkd.report.audits import Audits
from robustkd.report.results import Results
from robustkd.report.verdict import main_drop

MAX_DROP = 0.05
"""Largest loss of accuracy in the command that is suggested for the verification."""


def next_step(
    results: Results,
    audits: Audits,
    run: Path,
    *,
    data: Sequence[str] = (),
    arch: Sequence[str] = (),
    again: Sequence[str] = (),
) -> tuple[str, str]:
    """Return what to do next, and a command for it.

    Args:
        results: Results of the run.
        audits: Its audits.
        run: The run folder.
        data: Flags that name the data.
        arch: Flags that name a student's architecture of the user's own code.
        again: Flags that a repeated run needs besides its configuration.
    """
    anew = ["distill", "--config", run / "config.yaml", *again]
    check = [run, *data, *arch]
    drop = main_drop(aggregate(results.runs))
    if audits.student == "suspicious":
        # A run with a defence would be the same again.
        if split_name(str(results.config.get("method"))).base != "default":
            return (
                "do not deploy this student; distil another one with the default method:",
                _command(*anew, "--method", "default", "--out", "another-run"),
            )
        return (
            "do not deploy this student; see the pictures in the report, and audit it fully:",
            _command("audit", *check),
        )
    if drop is not None and drop.large:
        return (
            "much accuracy was lost; train longer, or distil a larger student:",
            _command(*anew, "--epochs", 2 * _epochs(results), "--out", "another-run"),
        )
    if audits.unclear:
        return "repeat the audit of the student, more thoroughly:", _command("audit", *check)
    verify = ["verify", *check, "--max-drop", MAX_DROP]
    if audits.useless:
        return (
            "the audit says nothing here; check the accuracy before the student is used:",
            _command(*verify, "--no-audit"),
        )
    return "check the student before it is used:", _command(*verify)


def _epochs(results: Results) -> int:
    training = results.config.get("training")
    found = training.get("epochs") if isinstance(training, dict) else None
    return found if isinstance(found, int) else 30


def _command(*words: object) -> str:
    return shlex.join(["robustkd", *map(str, words)])
