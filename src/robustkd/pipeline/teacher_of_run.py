"""How a finished run read its teacher, as its results state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkd.core.files import read_json, sha256_of
from robustkd.core.json_files import is_number
from robustkd.pipeline.run_files import INPUTS, has
from robustkd.report.results import Results
from robustkd.teacher.own_files import OWN_FILE


@dataclass(frozen=True)
class TeacherOfRun:
    """How a run read its teacher.

    Attributes:
        sha256: SHA-256 of the teacher's file.
        bytes: Size of the file.
        mean: Mean of each channel; empty if the file states it, or if it is unknown.
        std: Standard deviation of each channel, likewise.
        key: Key of the state dict in the file; None if it has none.
        outputs: Numbers of the teacher's outputs that are used; empty for all.
        classes: Names of the classes, in the order of these outputs.
    """

    sha256: str
    bytes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    key: str | None
    outputs: tuple[int, ...]
    classes: tuple[str, ...]

    def is_in(self, file: Path) -> bool:
        """Return whether a file has the same content; a file of another size is not read."""
        try:
            same_size = file.is_file() and file.stat().st_size == self.bytes
            return same_size and sha256_of(file) == self.sha256
        except OSError:
            return False


def teacher_of_run(folder: Path, results: Results) -> TeacherOfRun | None:
    """Return how a run read its teacher; None if its results do not state it.

    Results of older versions have no mean and standard deviation. Those that the user gave are in
    the settings of the run.

    Args:
        folder: The folder of the run.
        results: Its results.

    Raises:
        InputError: If the settings cannot be read.
    """
    file, classes = results.records.get("teacher_file"), results.records.get("classes")
    if not isinstance(file, dict):
        return None
    sha256, size, key = (file.get(name) for name in ("sha256", "bytes", "key"))
    if not isinstance(sha256, str) or not isinstance(size, int):
        return None
    states = file if "mean" in file else _settings(folder)
    mean, std = (_numbers(states.get(name)) for name in ("mean", "std"))
    if file.get("normalisation") == OWN_FILE or len(mean) != len(std):
        mean = std = ()
    return TeacherOfRun(
        sha256,
        size,
        mean,
        std,
        key if isinstance(key, str) and key else None,
        tuple(each for each in _listed(file.get("outputs")) if type(each) is int),
        tuple(each for each in _listed(classes) if isinstance(each, str)),
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    settings = read_json(folder / INPUTS).get("settings") if has(folder, INPUTS) else None
    return settings if isinstance(settings, dict) else {}


def _numbers(found: object) -> tuple[float, ...]:
    return tuple(float(each) for each in _listed(found) if is_number(each))


def _listed(found: object) -> list[object]:
    return found if isinstance(found, list) else []
