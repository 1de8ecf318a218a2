"""Names of the files in a run folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.core.yaml_files import read_yaml

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
STUDENT = "student.safetensors"
RESULTS = "results.json"
ARRAYS = "arrays.npz"
INPUTS = "run.json"
ENVIRONMENT = "environment.json"
DETOXIFIED = "detoxified.safetensors"
CLEANED = {"teacher": "cleaned-teacher.safetensors", "student": "cleaned-student.safetensors"}
LAST = "report.html"
LOG = "run.log"
SPLIT = "split.json"
SEAL = "seal.json"
SEALED = (CHECKPOINT, DETOXIFIED, *CLEANED.values(), STUDENT, RESULTS)
"""Files that a resumed run relies on and the seal covers; see `robustkd.pipeline.seal`."""
FIRST = (CONFIG, INPUTS, ENVIRONMENT, SPLIT, SEAL, LOG)
"""Files of a run that has computed nothing yet."""


def has(folder: Path, name: str) -> bool:
    """Return whether a folder has an entry of that name; its reader checks the kind."""
    return os.path.lexists(folder / name)


def check_finished(folder: Path, needed: str) -> None:
    """Raise an error for the folder of a run that is not finished.

    Args:
        folder: A folder, which may be something else.
        needed: Name of the file that the run has not written yet.

    Raises:
        InputError: With the command that resumes the run.
    """
    if line := unfinished(folder, needed):
        raise InputError(line)


def unfinished(folder: Path, needed: str) -> str:
    """Return a line that says how to resume a run without a file; empty for other folders.

    Args:
        folder: A folder, which may be something else.
        needed: Name of the file.
    """
    begun = has(folder, CONFIG) and any(has(folder, name) for name in (INPUTS, ENVIRONMENT))
    if not begun or has(folder, LAST) or has(folder, needed):
        return ""
    found = read_yaml(folder / CONFIG, links=False)
    if isinstance(found, dict) and found and "data" not in found:
        finish = resuming_call(folder)
    else:
        finish = f"robustkd distill --resume {shlex.quote(str(folder))}"
    return (
        f"{folder} is a run that is not finished and has no {needed} yet; finish it with: {finish}"
    )


def resuming_call(folder: Path) -> str:
    """Return how a run is resumed whose data came from Python code, which no command can name."""
    return f"the same call of robustkd.run, with out={str(folder)!r} and resume=True"
