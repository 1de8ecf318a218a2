"""From the path of a hostile file to plain tensors and the facts of where they come from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.core.folders import UnsafeError
from robustkd.core.trees import open_named
from robustkd.teacher.untrusted import sandbox
from robustkd.teacher.untrusted.read_safetensors import OWN_KEY

_EXPECTED = "expected a safetensors file or a torch checkpoint"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What came out of a file: plain tensors, and nothing that could act.

    Attributes:
        tensors: The state dict, with the names of the file.
        description: What a file of ours says of itself, as JSON text; empty for others.
        name: Of the file, without its folder.
        bytes: Its size.
        sha256: Of its bytes, in hexadecimal.
        verdict: How the reading process saw it.
    """

    tensors: Mapping[str, Tensor]
    description: str
    name: str
    bytes: int
    sha256: str
    verdict: sandbox.Verdict


def read(path: Path) -> Quarantined:
    """Read a file that may be an attack: safetensors, or a torch checkpoint in zip format.

    The bytes are looked at by a process of its own, with little memory and time and without
    files or network; it leaves a safetensors file in a private folder, which is all that is
    read here.

    Raises:
        InputError: If the file is of another kind, damaged, made to do harm, too costly to read,
            or changes meanwhile; one line with the reason.
    """
    if not hasattr(os, "posix_spawn"):
        raise InputError(f"{path} cannot be read safely on this system; use Linux or macOS")
    with _open(path) as file, tempfile.TemporaryDirectory(prefix="robustkd-") as folder:
        size = os.fstat(file.fileno()).st_size
        before = _sha256(file)
        plain = Path(folder) / "teacher.safetensors"
        verdict = _convert(file, plain, size)
        if _sha256(file) != before:
            raise InputError(f"{path} changed while it was read; give a file that nobody writes to")
        if verdict.refusal:
            raise InputError(f"{path} {verdict.refusal}")
        tensors, description = _load(plain, path)
    return Quarantined(tensors, description, path.name, size, before, verdict)


def _open(path: Path) -> BufferedReader:
    """The open file, once it is a plain one and no link on its path leaves a folder given to us."""
    try:
        return os.fdopen(open_named(path), "rb")
    except UnsafeError as error:
        raise InputError(f"{path} is not a plain file; {_EXPECTED}") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read: {reason}; {_EXPECTED}") from error


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(file: BufferedReader, plain: Path, size: int) -> sandbox.Verdict:
    # The reading process shares the position with us.
    file.seek(0)
    target = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with closing(os.fdopen(target, "wb")):
        return sandbox.run(file.fileno(), target, sandbox.Grant.for_size(size))


def _load(plain: Path, path: Path) -> tuple[dict[str, Tensor], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(plain, framework="pt") as file:
            description = (file.metadata() or {}).get(OWN_KEY, "")
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} makes its reader write nonsense; it is damaged") from error
