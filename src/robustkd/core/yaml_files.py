"""Reading YAML that people write: data only, and no key twice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.core.errors import InputError
from robustkd.core.folders import Folder, UnsafeError

if TYPE_CHECKING:
    from yaml import Node

_MOST_BYTES = 1 << 20


def read_yaml(path: Path, *, links: bool = True) -> object:
    """What a YAML file holds, read as plain data.

    Args:
        path: The file.
        links: Whether the path is the user's own, which may be a link or a pipe. A file that we
            look for in a folder, as in that of a run, must be there itself.

    Raises:
        InputError: If it cannot be read or is not YAML, or a mapping says a key twice, of which
            YAML would quietly take the last.
    """
    import yaml

    try:
        text = _text(path, links=links)
        twice = next(_twice(yaml.compose(text, yaml.SafeLoader)), None)
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if twice is not None:
        line = twice.start_mark.line + 1
        raise InputError(f"{path} says {twice.value!r} twice, in line {line}; leave one of them")
    return content


def _text(path: Path, *, links: bool) -> str:
    if links:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    else:
        with Folder.at(path.parent) as folder:
            content = folder.read(path.name, most=_MOST_BYTES)
    if len(content) > _MOST_BYTES:
        raise UnsafeError(errno.EFBIG, f"it has more than {_MOST_BYTES:,} bytes")
    return content.decode("utf-8")


def _twice(root: Node | None) -> Iterator[Node]:
    """Keys that stand in their mapping already."""
    from yaml import MappingNode, SequenceNode

    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in met:  # an alias
            continue
        met.add(id(node))
        if isinstance(node, SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, MappingNode):
            keys = set()
            for key, value in node.value:
                spelt = (key.tag, str(key.value))
                if spelt in keys:
                    yield key
                keys.add(spelt)
                waiting.append(value)
