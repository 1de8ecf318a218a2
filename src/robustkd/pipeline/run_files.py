"""Names of the files in a run folder."""

from __future__ import annotations

import os
from pathlib import Path

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
