"""Reading a hostile file: from its path to plain tensors and properties of the file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.core.folders import UnsafeError
from robustkd.core.layout import read_layout
from robustkd.core.trees import open_named
from robustkd.teacher.untrusted import sandbox
from robustkd.teacher.untrusted.contents import Refusal
from robustkd.teacher.untrusted.formats import HEAD, recognise
from robustkd.teacher.untrusted.read_safetensors import OWN_KEY

Fits: TypeAlias = Callable[[Mapping[str, Tensor], str], object]
_CHUNK = 1 << 20
_EXPECTED = "expected a safetensors file or a torch checkpoint"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Plain tensors and the properties of the file that contained them.

    Attributes:
        tensors: The state dict, with the names in the file.
        description: Description in a file of this package, as JSON text; empty for other files.
        name: File name without the folder.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
        verdict: Verdict of the reading process.
    """

    tensors: Mapping[str, Tensor]
    description: str
    name: str
    bytes: int
    sha256: str
    verdict: sandbox.Verdict


def read(
    path: Path, *, most: int | None = None, fits: Fits | None = None, weak: bool = False
) -> Quarantined:
    """Read a file that may be an attack: safetensors, or a torch checkpoint in zip format.

    Cheap checks come first: the format, the size, and then names and shapes, on the original file.
    Only then the file is copied. The copy is hashed and parsed, so that the hash is that of the
    weights, even if the file changes in the meantime. The bytes are parsed by a child process with
    limited memory and time and without files or network. It writes a safetensors file to a private
    folder, and only that file is read by this process.

    Args:
        path: The file.
        most: Largest accepted size in bytes.
        fits: Function that receives tensors without values and the description of a file of this
            package; it raises an error if they do not match the architecture.
        weak: If True, read the file even if system calls of the child process cannot be filtered.

    Raises:
        InputError: If the file has another format, is damaged, malicious or too large, or changes
            while it is read; or if there is no space for its copy.
    """
    if not hasattr(os, "posix_spawn"):
        raise InputError(f"{path} cannot be read safely on this system; use Linux or macOS")
    with _open(path) as file, _system(path), _folder() as folder:
        state = _state(file)
        _check_cheaply(file, path, size=state[0], most=most)
        if fits is not None:
            fits(*_layout(file, folder / "layout", path, weak=weak))
        sha256 = _copy(file, folder / "copy", state[0])
        if _state(file) != state:
            raise _changed(path)
        with (folder / "copy").open("rb", buffering=0) as copy:
            plain = folder / "teacher.safetensors"
            verdict = _convert(copy, plain, sandbox.Grant.for_size(state[0], weak=weak))
        if _state(file) != state:
            raise _changed(path)
        if verdict.refusal:
            raise InputError(f"{path} {verdict.refusal}")
        tensors, description = _load(plain, path)
    return Quarantined(tensors, description, path.name, state[0], sha256, verdict)


def _state(file: FileIO) -> tuple[int, int]:
    """Return size and modification time, by which a change of the file is noticed."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read; give a file that nobody writes to")


@contextmanager
def _folder() -> Iterator[Path]:
    """Create a private folder that exists while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="robustkd-") as folder:
        yield Path(folder)


@contextmanager
def _system(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into messages that do not blame the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be read because of the system: {reason}; free space in the folder for "
            "temporary files, or set TMPDIR to one that has room for the file twice"
        ) from error


def _check_cheaply(file: FileIO, path: Path, *, size: int, most: int | None) -> None:
    try:
        recognise(file.read(HEAD))
    except Refusal as refusal:
        raise InputError(f"{path} {refusal}") from refusal
    if most is not None and size > most:
        raise InputError(
            f"{path} has {size} bytes; expected at most {most} for its architecture: save the "
            "state dict alone"
        )


def _layout(file: FileIO, plain: Path, path: Path, *, weak: bool) -> tuple[dict[str, Tensor], str]:
    """Return names, types and shapes as tensors without values, and the description."""
    verdict = _convert(file, plain, sandbox.Grant.for_layout(weak=weak))
    if verdict.refusal:
        raise InputError(f"{path} {verdict.refusal}")
    try:
        with plain.open("rb") as layout:
            tensors, metadata = read_layout(layout)
    except ValueError as error:
        raise _nonsense(path) from error
    return tensors, metadata.get(OWN_KEY, "")


def _copy(file: FileIO, path: Path, size: int) -> str:
    """Copy at most ``size`` bytes, and return the SHA-256 of the copy in hexadecimal."""
    digest, left = hashlib.sha256(), size
    file.seek(0)
    with path.open("xb") as copy:
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            copy.write(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _nonsense(path: Path) -> InputError:
    return InputError(f"{path} makes its reader write nonsense; it is damaged")


def _open(path: Path) -> FileIO:
    """Open a regular file; links on its path that leave an untrusted folder are refused."""
    try:
        # Unbuffered: the child process moves the shared file position.
        return os.fdopen(open_named(path), "rb", buffering=0)
    except UnsafeError as error:
        raise InputError(f"{path} is not a plain file; {_EXPECTED}") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read: {reason}; {_EXPECTED}") from error


def _convert(file: FileIO, plain: Path, grant: sandbox.Grant) -> sandbox.Verdict:
    file.seek(0)
    target = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with closing(os.fdopen(target, "wb")):
        return sandbox.run(file.fileno(), target, grant)


def _load(plain: Path, path: Path) -> tuple[dict[str, Tensor], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(plain, framework="pt") as file:
            description = (file.metadata() or {}).get(OWN_KEY, "")
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _nonsense(path) from error
