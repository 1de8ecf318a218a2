"""Run ``robustkd distill`` with a teacher file and report how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from robustkd import cli
from robustkd.teacher.untrusted import sandbox


@dataclass(frozen=True)
class Ending:
    """How the command ended, and what the reading process took; None where there was none."""

    code: int
    out: str
    err: str
    seconds: float
    verdict: sandbox.ReadOutcome | None


def distil(
    teacher: Path,
    folder: Path,
    around: AbstractContextManager[object] | None = None,
    flags: Sequence[str] = (),
) -> Ending:
    """Distil from a file in an own folder, which also holds the folder for temporary files."""
    options = ["--arch", "wrn-10-1", "--data", "digits", "--student", "wrn-10-1"]
    options += ["--out", str(folder / "run"), "--method", "no-teacher", "--epochs", "1"]
    options += flags
    verdicts: list[sandbox.ReadOutcome] = []
    out, err, code = io.StringIO(), io.StringIO(), 0
    (folder / "tmp").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(around or contextlib.nullcontext())
        run = sandbox.run

        def watched(source: int, target: int, grant: sandbox.Grant) -> sandbox.ReadOutcome:
            verdicts.append(run(source, target, grant))
            return verdicts[-1]

        stack.enter_context(mock.patch.object(sandbox, "run", watched))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(folder / "tmp")))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        started = time.monotonic()
        try:
            cli.main(["distill", str(teacher), *options, "--no-audit", "--json"])
        except SystemExit as ended:
            code = int(str(ended.code or 0))
        seconds = time.monotonic() - started
    verdict = verdicts[-1] if verdicts else None
    return Ending(code, out.getvalue(), err.getvalue(), seconds, verdict)


def left_behind(folder: Path) -> list[str]:
    """What lies in the folder, and in the quarantine that should be gone."""
    return sorted([*os.listdir(folder), *map(str, (folder / "tmp").glob("robustkd-*"))])
