"""Reading YAML files as plain data of bounded size."""

from __future__ import annotations

import errno
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.core.folders import Folder, UnsafeError

_MOST_BYTES = 1 << 18


def read_yaml(
    path: Path, *, links: bool = True, anchors: bool = False, exponents: bool = False
) -> object:
    """Read a YAML file as plain data.

    Args:
        path: The file.
        links: If True, the path was given by the user and may be a link or a pipe. If False, it
            must be a regular file, as in the folder of a run.
        anchors: If True, anchors (``&name``) and aliases (``*name``) are allowed.
        exponents: If True, ``1e-3`` is a number; if False, it is text.

    Raises:
        InputError: If the file cannot be read, is not YAML, exceeds a limit, or repeats a key.
    """
    import yaml

    from robustkd.core.plain_yaml import RefusedError, parse

    try:
        return parse(_text(path, links=links), anchors=anchors, exponents=exponents)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except RefusedError as error:
        raise InputError(f"{path} {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error


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
