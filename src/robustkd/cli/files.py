"""Flags that stand in a file: of ``--config``, or of the run that ``--resume`` names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from robustkd.core.errors import InputError
from robustkd.core.yaml_files import read_yaml
from robustkd.pipeline.run_folder import CONFIG

# A file may come from the same stranger as the teacher.
_TYPED_ALONE = {
    "allowweaksandbox": ("allow_weak_sandbox", "weaken the reading of a hostile file"),
    "trustrun": ("trust_run", "make a run go on from files that somebody else has written"),
}


def from_files(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in the flags that were not typed; a file holds data only, see ``flags._named``."""
    for flag, within in (("--config", ""), ("--resume", CONFIG)):
        for argument in arguments:
            if flag in argument.names and argument.tokens:
                path = Path(argument.tokens[0].value) / within
                content = _read(path, of_a_run=bool(within))
                # As a word of its own, since cyclopts says "cli" of what was typed.
                Dict(content, source=f"file {path}", use_commands_as_keys=False)(
                    app, commands, arguments
                )


def _read(path: Path, *, of_a_run: bool) -> dict[str, Any]:
    if of_a_run and not os.path.lexists(path):
        raise InputError(f"{path.parent} is not the folder of a run: it has no {path.name}")
    content = read_yaml(path, links=not of_a_run)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no flags; expected lines such as 'epochs: 30'")
    for key in content:
        name, harm = _TYPED_ALONE.get(re.sub("[^a-z]", "", key.lower()), ("", ""))
        if name:
            raise InputError(
                f"{path} sets {name}, which may {harm}; "
                f"type --{name.replace('_', '-')} yourself, where you accept that"
            )
    # What is null is left to its default.
    return {key: value for key, value in content.items() if value is not None}
