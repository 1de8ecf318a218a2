"""Files of YAML that people write, or hand over: data only, and of a bounded size."""

from __future__ import annotations

import errno
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.core.folders import Folder, UnsafeError

_MOST_BYTES = 1 << 18


def read_yaml(path: Path, *, links: bool = True, anchors: bool = False) -> object:
    """What a YAML file holds, read as plain data.

    Args:
        path: The file.
        links: Whether the path is the user's own, which may be a link or a pipe. A file that we
            look for in a folder, as in that of a run, must be there itself.
        anchors: Whether a value may be given a name (``&name``), and repeated by it (``*name``).

    Raises:
        InputError: If it cannot be read or is not YAML, is larger than any honest file, or says a
            key twice, of which YAML would quietly take the last.
    """
    import yaml

    from robustkd.core.plain_yaml import RefusedError, parse

    try:
        return parse(_text(path, links=links), anchors=anchors)
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
