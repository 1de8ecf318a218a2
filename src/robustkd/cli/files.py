"""Flags that stand in a file: of ``--config``, or of the run that ``--resume`` names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from robustkd.errors import InputError
from robustkd.runs import CONFIG

if TYPE_CHECKING:
    from yaml import Node


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
    import yaml

    if of_a_run and not path.is_file():
        raise InputError(f"{path.parent} is not the folder of a run: it has no {path.name}")
    try:
        text = path.read_text(encoding="utf-8")
        twice = _twice(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no flags; expected lines such as 'epochs: 30'")
    if twice is not None:
        raise InputError(f"{path} says {twice!r} twice; leave one of them")
    # What is null is left to its default.
    return {key: value for key, value in content.items() if value is not None}


def _twice(node: Node | None) -> str | None:
    """The first key that stands twice in a mapping, of which YAML would take the last."""
    from yaml import MappingNode

    keys = [key.value for key, _ in node.value] if isinstance(node, MappingNode) else []
    return next((key for k, key in enumerate(keys) if key in keys[:k]), None)
