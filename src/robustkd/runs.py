"""The run folder: made once, never overwritten, complete enough to repeat the run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from robustkd.errors import InputError, UsageError


def new_folder(path: Path) -> Path:
    """Make an empty folder for a run.

    Raises:
        UsageError: If it exists and holds anything.
        InputError: If it cannot be made.
    """
    if any(make_folder(path).iterdir()):
        raise UsageError(f"output folder {path} is not empty; give a new one with --out")
    return path


def free_name(path: Path) -> Path:
    """The path itself, or with -2, -3, ... behind it, so that nothing is there yet."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], numbered) if not free.exists())


def make_folder(path: Path) -> Path:
    """Make a folder that may be there already, with whatever is in it.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {path} cannot be made: {error.strerror}") from error
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object, beside the file first and renamed then.

    Raises:
        InputError: If it cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file as `write_lines` does.

    Raises:
        InputError: If it cannot be written.
    """
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file, beside it first and renamed then, so that it is never there in part.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def environment() -> dict[str, str | int]:
    """What a figure depends on besides the code: versions and the machine."""
    from importlib.metadata import version

    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "robustkd": version("robustkd"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(accelerator or "cpu"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "system": platform.system(),
    }
