"""The command that resumes an interrupted run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkd.core.yaml_files import read_yaml
from robustkd.pipeline.run_files import CONFIG

_PLACES = ("data", "data_root", "student_weights", "class_names", "split")
"""Flags of files that may have been moved since the run was started."""


def resume_command(
    folder: Path,
    inputs: Mapping[str, Mapping[str, object]],
    config: Mapping[str, object],
    further: Sequence[str] = (),
) -> str:
    """Return the command that resumes a run.

    Args:
        folder: The run folder, with the flags of the start of the run.
        inputs: Inputs of the run, as in :func:`robustkd.pipeline.run_folder.opened`.
        config: Flags of the present command; places that have changed since the start of the run
            are part of the command.
        further: Flags and values that no file of the run has.
    """
    before = read_yaml(folder / CONFIG, links=False)
    known = before if isinstance(before, dict) else {}
    moved = {
        name: str(config[name])
        for name in ("teacher", *_PLACES)
        if config.get(name) is not None and config[name] != known.get(name)
    }
    teacher = [moved.pop("teacher")] if "teacher" in moved else []
    # The user's own code is never named by a file.
    own = {name: inputs.get("settings", {}).get(name) for name in ("arch", "student")}
    typed = {name: str(value) for name, value in own.items() if ":" in str(value)} | moved
    flags = [word for name, value in typed.items() for word in (_flag(name), value)]
    words = ["robustkd", "distill", *teacher, "--resume", str(folder), *flags, *further]
    return shlex.join(words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
