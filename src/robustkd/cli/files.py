"""Flags from a file: that of ``--config``, or that of the run of ``--resume``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import at_home
from robustkd.core.yaml_files import read_yaml
from robustkd.pipeline.run_files import CONFIG, resuming_call

# cyclopts itself accepts the words yes, no, true and false.
_WORDS = {"on": True, "off": False}
# The file may come from the same untrusted source as the teacher.
_TYPED_ALONE = {
    "allowweaksandbox": ("allow_weak_sandbox", "weaken the protection against hostile files"),
    "trustrun": ("trust_run", "resume a run from files that somebody else has written"),
}


def from_files(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in flags that were not given on the command line; a file cannot name code to run."""
    del commands
    for flag, within in (("--config", ""), ("--resume", CONFIG)):
        for argument in arguments:
            if flag in argument.names and argument.tokens:
                path = Path(argument.tokens[0].value) / within
                content = _read(path, of_a_run=bool(within))
                if within and "data" not in content and not _given("--data", arguments):
                    raise UsageError(
                        f"the images of the run {path.parent} came from Python code; continue it "
                        f"with {resuming_call(path.parent)}"
                    )
                content = _switched(content, arguments)
                # Under a name of its own: cyclopts uses "cli" for flags of the command line. The
                # file has no sections for commands; with use_commands_as_keys=False, cyclopts would
                # skip flags that are named like a command, such as "audit".
                Dict(content, source=f"file {path}")(app, (), arguments)


def _given(flag: str, arguments: ArgumentCollection) -> bool:
    return any(flag in argument.names and argument.tokens for argument in arguments)


def _switched(content: dict[str, object], arguments: ArgumentCollection) -> dict[str, object]:
    """Read the words on and off as booleans for flags that are booleans."""
    switches = {
        name
        for argument in arguments
        if bool in (argument.hint, *get_args(argument.hint))
        for name in argument.names
    }
    return {
        key: _WORDS[value.lower()]
        if isinstance(value, str)
        and value.lower() in _WORDS
        and f"--{key.replace('_', '-')}" in switches
        else value
        for key, value in content.items()
    }


def _read(path: Path, *, of_a_run: bool) -> dict[str, object]:
    if of_a_run and not os.path.lexists(path):
        raise InputError(f"{path.parent} is not the folder of a run: it has no {path.name}")
    content = read_yaml(path, links=not of_a_run)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no flags; expected lines such as 'epochs: 30'")
    for key in content:
        name, harm = _TYPED_ALONE.get(re.sub("[^a-z]", "", key.lower()), ("", ""))
        if name:
            raise InputError(
                f"{path} sets {name}, which may {harm}; give --{name.replace('_', '-')} on the "
                "command line if you accept that"
            )
    # Null stands for the default.
    return {
        key: at_home(value) if isinstance(value, str) else value
        for key, value in content.items()
        if value is not None
    }
