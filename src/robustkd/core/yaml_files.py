"""Reading YAML that people write: data only, and no key twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.core.errors import InputError

if TYPE_CHECKING:
    from yaml import Node


def read_yaml(path: Path) -> object:
    """What a YAML file holds, read as plain data.

    Raises:
        InputError: If it cannot be read or is not YAML, or a mapping says a key twice, of which
            YAML would quietly take the last.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
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
