"""Names of arguments in messages, told as the flags that set them.

Checks are shared by the commands and the functions of Python, and their messages begin with the
name of an argument: ``image_size is 0; expected 1 to 4096 pixels``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, get_args

from cyclopts import App

# Arguments of Python that other flags set.
_SET_BY = {"channels": "grey", "classes": "class_names", "root": "data_root"}
_VERB = r"(?:is|are|and|belong|needs)\b"
_NAME = re.compile(rf"(^|\band )([a-z_][a-z_0-9]*)(?= {_VERB})(?: is (True|False|1)(?![.\w]))?")
_PART = re.compile(r"(--[\w-]+)\.([\w-]+)")


class _Flag(NamedTuple):
    """A flag; if it is a switch, also the flag that switches it off."""

    name: str
    switch: bool = False
    off: str = ""


def in_flags(message: str, app: App, words: Sequence[str]) -> str:
    """Return the message of a usage error with flags in place of the names of arguments.

    Args:
        message: Message; it is returned as it is unless it begins with the name of an argument of
            the command.
        app: All commands.
        words: Words of the command line, of which the first is the command.
    """
    fact, sign, rest = message.partition(";")
    first = _NAME.match(fact)
    if first is None:
        return message
    flags = _flags(app, words)
    if first[2] not in flags:
        return message

    def told(found: re.Match[str]) -> str:
        before, name, value = found.groups()
        flag = flags.get(name)
        if flag is None:
            return found[0]
        if value is None or not flag.switch:
            return found[0].replace(name, flag.name, 1)
        return f"{before}{flag.off if value == 'False' else flag.name} is given"

    return f"{_NAME.sub(told, fact)}{sign}{rest}"


def _flags(app: App, words: Sequence[str]) -> dict[str, _Flag]:
    """Return the flags of the command by the names of their arguments."""
    if not words or words[0].startswith("-") or words[0] not in app:
        return {}
    found: dict[str, _Flag] = {}
    for argument in app[words[0]].assemble_argument_collection():
        if argument.name.startswith("--"):
            switch = bool in (argument.hint, *get_args(argument.hint))
            off = next((name for name in argument.names if name.startswith("--no-")), argument.name)
            found[argument.field_info.name] = _Flag(argument.name, switch, off)
    for name, flag in _SET_BY.items():
        if flag in found:
            found[name] = found[flag]
    # Parts of a flag such as --set.cap, whose names only the words tell.
    for part in filter(None, map(_PART.match, words)):
        found[part[2].replace("-", "_")] = _Flag(part[0])
    return found
