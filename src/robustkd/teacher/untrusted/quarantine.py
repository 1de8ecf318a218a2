"""From the path of a hostile file to plain tensors and the facts of where they come from."""

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


def read(
    path: Path, *, most: int | None = None, fits: Fits | None = None, weak: bool = False
) -> Quarantined:
    """Read a file that may be an attack: safetensors, or a torch checkpoint in zip format.

    What is cheap to check comes first: the format, the size, and then names and shapes, all of
    the file where it lies. Only then it is copied, and the copy is what is hashed and parsed, so
    that the hash is that of the weights whatever happens to the file meanwhile. The bytes are
    looked at by a process of its own, with little memory and time and without files or network;
    it leaves a safetensors file in a private folder, which is all that is read here.

    Args:
        path: The file.
        most: Bytes that it may have.
        fits: Is given tensors without values, and what a file of ours says of itself; it raises
            an error if they are not those that are needed.
        weak: Whether to read it where the system calls of the reading process cannot be filtered.

    Raises:
        InputError: If the file is of another kind, damaged, made to do harm, too costly to read,
            or changes meanwhile; one line with the reason. Or if there is no room for its copy.
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
    """Size and time of the last change: of the copy we know the bytes, of the file only these."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read; give a file that nobody writes to")


@contextmanager
def _folder() -> Iterator[Path]:
    """A private folder for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="robustkd-") as folder:
        yield Path(folder)


@contextmanager
def _system(path: Path) -> Iterator[None]:
    """Say what the system lacks, which is not the file's fault."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be read for want of the system: {reason}; free space in the folder for "
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
    """Names, types and shapes as tensors without values, and what a file of ours says."""
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
    """Copy at most ``size`` bytes; returns the SHA-256 of the copy, in hexadecimal."""
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
    """The open file, once it is a plain one and no link on its path leaves a folder given to us."""
    try:
        # Without a buffer: the reading process moves the position that it shares with us.
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
