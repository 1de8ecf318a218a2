"""Reading a hostile file: from its path to plain tensors and properties of the file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from robustkd.core.errors import InputError, temporary_advice
from robustkd.core.folders import UnsafeError
from robustkd.core.layout import read_layout
from robustkd.core.trees import open_named
from robustkd.teacher.untrusted import sandbox
from robustkd.teacher.untrusted.contents import Refusal
from robustkd.teacher.untrusted.formats import HEAD, recognise
from robustkd.teacher.untrusted.read_safetensors import OWN_KEY

_CHUNK = 1 << 20
_ROOM = "set TMPDIR to one that has room for two copies of the file"
_EXPECTED = "expected a safetensors file or a torch checkpoint"


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and types of a state dict in a file.

    Attributes:
        tensors: Tensors without values, on the device ``meta``, in the order of the file.
        description: Description in a file of this package, as JSON text; empty for other files.
        surroundings: Keys that lead to the state dict, and keys that were not read.
        ordered: Whether the tensors are in the order in which the network has them.
    """

    tensors: Mapping[str, Tensor]
    description: str
    surroundings: sandbox.Surroundings
    ordered: bool


Choose: TypeAlias = Callable[[Sequence[Layout]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Plain tensors and the properties of the file that contained them.

    Attributes:
        tensors: The state dict, with the names in the file.
        description: Description in a file of this package, as JSON text; empty for other files.
        name: File name without the folder.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
        verdict: What the reading process reported.
        choice: Number of the state dict among those in the file.
    """

    tensors: Mapping[str, Tensor]
    description: str
    name: str
    bytes: int
    sha256: str
    verdict: sandbox.ReadOutcome
    choice: int = 0

    @property
    def surroundings(self) -> sandbox.Surroundings:
        """Keys that lead to the state dict, and keys that were not read."""
        return self.verdict.candidates[self.choice]


def read(path: Path, *, weak: bool = False) -> Quarantined:
    """Read the first state dict of a file that may be an attack; see :func:`read_each`."""
    with closing(read_each(path, weak=weak)) as found:
        return next(found)


def read_each(
    path: Path, *, most: int | None = None, choose: Choose | None = None, weak: bool = False
) -> Generator[Quarantined, None, None]:
    """Read state dicts of a file that may be an attack: safetensors, or a torch checkpoint.

    Cheap checks come first: the format, the size, and then names and shapes, on the original file.
    Then the file is copied. The copy is hashed and parsed, so that the hash is that of the
    weights, even if the file changes in the meantime. The bytes are parsed by a child process with
    limited memory and time and without files or network. It writes a safetensors file to a private
    folder, and only that file is read by this process.

    Args:
        path: The file.
        most: Largest accepted size in bytes.
        choose: Function that receives the layout of each state dict in the file, and returns the
            numbers of those to read; it raises an error if none matches the architecture. By
            default the first is read.
        weak: If True, read the file even if system calls of the child process cannot be filtered.

    Yields:
        The chosen state dicts, one at a time.

    Raises:
        InputError: If the file has another format, is damaged, malicious or too large, or changes
            while it is read; or if there is no space for its copy.
    """
    if not hasattr(os, "posix_spawn"):
        raise InputError(f"{path} cannot be read safely on this system; use Linux or macOS")
    with _open(path) as file, _folder(path) as folder:
        with _system(path):
            state = _state(file)
            _check_cheaply(file, path, size=state[0], most=most)
            chosen = [0] if choose is None else choose(_layouts(file, folder, path, weak=weak))
            sha256 = _copy(file, folder / "copy", state[0])
            if _state(file) != state:
                raise _changed(path)
        for choice in chosen:
            with _system(path):
                tensors, description, verdict = _values(folder, path, state[0], choice, weak=weak)
                if _state(file) != state:
                    raise _changed(path)
            yield Quarantined(tensors, description, path.name, state[0], sha256, verdict, choice)


def check_format(path: Path) -> None:
    """Check that a file begins as one that :func:`read_each` accepts.

    Raises:
        InputError: If it cannot be opened, or begins as another kind of file.
    """
    with _open(path) as file, _system(path):
        _check_cheaply(file, path, size=0, most=None)


def _values(
    folder: Path, path: Path, size: int, choice: int, *, weak: bool
) -> tuple[dict[str, Tensor], str, sandbox.ReadOutcome]:
    """Convert one state dict of the copy in the private folder, and load it."""
    plain = folder / f"teacher-{choice}.safetensors"
    with (folder / "copy").open("rb", buffering=0) as copy:
        verdict = _convert(copy, plain, sandbox.Grant.for_size(size, choice=choice, weak=weak))
    if verdict.refusal:
        raise InputError(f"{path} {verdict.refusal}")
    tensors, description = _load(plain, path)
    # Deleted at once, so that the disk needs room for one copy and one converted state dict only.
    plain.unlink()
    return tensors, description, verdict


def _state(file: FileIO) -> tuple[int, int]:
    """Return size and modification time, which show whether the file was changed."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} changed while it was read; give a file that no other program writes to"
    )


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Create a private folder that exists while the block lasts."""
    with _system(path):
        made = tempfile.TemporaryDirectory(prefix="robustkd-")
    with made as folder:
        yield Path(folder)


@contextmanager
def _system(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into messages that name the system as the cause."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be read because of the system: {reason}; "
            f"{temporary_advice(error, room=_ROOM)}"
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


def _layouts(file: FileIO, folder: Path, path: Path, *, weak: bool) -> list[Layout]:
    """Return names, types and shapes of each state dict in the file."""
    plain = folder / "layout"
    verdict = _convert(file, plain, sandbox.Grant.for_layout(weak=weak))
    if verdict.refusal:
        raise InputError(f"{path} {verdict.refusal}")
    try:
        with plain.open("rb") as layout:
            tensors, metadata = read_layout(layout)
        places: dict[tuple[int, int], tuple[str, Tensor]] = {}
        for long_name, tensor in tensors.items():
            first, second, name = long_name.split(" ", 2)
            places[int(first), int(second)] = name, tensor
    except ValueError as error:
        raise _invalid_output(path) from error
    by_number: list[dict[str, Tensor]] = [{} for _ in verdict.candidates]
    for number, place in sorted(places):
        if 0 <= number < len(by_number):
            name, tensor = places[number, place]
            by_number[number][name] = tensor
    if not by_number or not all(by_number):
        raise _invalid_output(path)
    description = metadata.get(OWN_KEY, "")
    return [
        Layout(found, description, around, verdict.ordered)
        for found, around in zip(by_number, verdict.candidates, strict=True)
    ]


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


def _invalid_output(path: Path) -> InputError:
    return InputError(f"{path} makes the reading process write an invalid file; it is damaged")


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


def _convert(file: FileIO, plain: Path, grant: sandbox.Grant) -> sandbox.ReadOutcome:
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
    except (SafetensorError, ValueError) as error:
        raise _invalid_output(path) from error
