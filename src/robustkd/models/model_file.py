"""Safetensors files that describe themselves: tensors and one JSON object in the metadata.

The object is under the key ``robustkd``. There is only one key because the writer of the format
does not fix the order of several keys, and equal models must give files that are equal byte for
byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

from torch import Tensor

from robustkd.core.errors import InputError, WriteError, first_line
from robustkd.core.files import is_regular, replacing
from robustkd.core.folders import Folder, refusal
from robustkd.core.layout import LONGEST_HEADER, read_header, read_layout
from robustkd.core.trees import open_named, readable_path

_KEY = "robustkd"
_FORMAT = 1
_HEAD = 64
_OF_A_TEACHER = "read the file of a teacher with robustkd.load_teacher"
_LFS = b"version https://git-lfs.github.com/spec/"
_CHECKPOINTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

Fits: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, object]], object]
"""Function that raises an error if tensors, without their values, or a description do not fit."""


class ForeignFileError(InputError):
    """A file is not one that this package wrote.

    Args:
        fact: What the file is, for messages with other advice.
        advice: What to do about it in Python.
    """

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact = fact


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, object]
) -> None:
    """Write tensors and a JSON description to one file, atomically.

    Args:
        path: File to write; its folder is created.
        tensors: Tensors by name.
        description: JSON values.

    Raises:
        WriteError: If the file cannot be written; no temporary file is left behind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = _apart(tensors)
    text = json.dumps({"format": _FORMAT, **description}, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.touch(exist_ok=False)
            mode = partial.stat().st_mode
            save_file(plain, partial, metadata={_KEY: text})
            # save_file restricts the permissions to the owner; the umask should decide instead.
            partial.chmod(mode)
    except SafetensorError as error:
        raise WriteError(f"{path} cannot be written: {first_line(error)}") from error
    except OSError as error:
        raise refusal(path, error) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory, as the format requires."""
    apart: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if memory in used else plain
        used.add(memory)
    return apart


def read_safetensors(
    path: Path,
    *,
    links: bool = True,
    fits: Fits | None = None,
    longest_header: int = LONGEST_HEADER,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the tensors and the description of a file from :func:`write_safetensors`.

    Args:
        path: The file.
        links: If True, the path is one that the user gave, which may be a symbolic link within its
            folder. If False, links are refused, as for files that are searched for in a run folder.
        fits: Called with the tensors without their values, and the description, before any value is
            read. It raises an error if they are not the ones that are needed.
        longest_header: Largest length of the file's header in bytes.

    Returns:
        Tensors by name, and the description.

    Raises:
        ForeignFileError: If the file has no description, or is a checkpoint of torch.
        InputError: If the file is missing, is not in safetensors format, or has no valid
            description.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with _opened(path, links=links) as opened:
            layout, metadata = read_layout(opened, longest=longest_header)
            description = parse_description(metadata[_KEY], path)
            if fits is not None:
                fits(layout, description)
            with safe_open(readable_path(opened.fileno()), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except KeyError as error:
        raise ForeignFileError(
            f"{path} has no {_KEY!r} metadata",
            f"expected a file written by robustkd, or {_OF_A_TEACHER}",
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        _check_kind(path, links=links)
        raise InputError(
            f"{path} is not a readable safetensors file: {first_line(error)}"
        ) from error
    return tensors, description


def _check_kind(path: Path, *, links: bool) -> None:
    """Raise a specific error for a file that is usually given in place of a model."""
    try:
        with _opened(path, links=links) as opened:
            head = opened.read(_HEAD)
    except (InputError, OSError):
        return
    if head.startswith(_LFS):
        raise InputError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
        )
    if head.startswith(_CHECKPOINTS) and head[8:9] != b"{":
        raise ForeignFileError(
            f"{path} is no file that robustkd wrote, but a torch checkpoint, or another pickle or "
            "archive",
            _OF_A_TEACHER,
        )


def _opened(path: Path, *, links: bool) -> BinaryIO:
    if links:
        if not is_regular(path):
            if not os.path.lexists(path):
                raise InputError(f"{path} does not exist; check the path")
            raise InputError(f"{path} is not a file; expected one that robustkd wrote")
        return os.fdopen(open_named(path), "rb")
    with Folder.at(path.parent) as folder:
        return folder.open(path.name)


def is_described(path: Path) -> bool:
    """Return whether a file is a model that :func:`save` wrote, as far as its header tells.

    A file with the suffix of safetensors and a damaged header counts as one, so that loading it
    says what is wrong.
    """
    try:
        with _opened(path, links=True) as opened:
            return _KEY in read_header(opened)[1]
    except ValueError:
        return path.suffix == ".safetensors" and _begins_as_one(path)
    except (InputError, OSError):
        return False


def _begins_as_one(path: Path) -> bool:
    with _opened(path, links=True) as opened:
        return opened.read(_HEAD)[8:9] in (b"{", b"")


def read_description(path: Path) -> dict[str, object] | None:
    """Read the description in the header of a file; None if it has none or cannot be read.

    Raises:
        InputError: If the description is damaged.
    """
    try:
        text = _description_in(path)
    except (InputError, OSError, ValueError):
        return None
    return None if text is None else parse_description(text, path)


def _description_in(path: Path) -> str | None:
    with _opened(path, links=True) as opened:
        return read_layout(opened)[1].get(_KEY)


def parse_description(text: str, path: Path) -> dict[str, object]:
    """Parse the description in the metadata of a file.

    Args:
        text: JSON text of the description.
        path: The file, for messages.

    Raises:
        InputError: If the text is not a JSON object of the known version.
    """
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: {first_line(error)}"
        ) from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise InputError(f"{path} has metadata of another version; expected format {_FORMAT}")
    return description
