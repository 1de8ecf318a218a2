"""The seal of a run folder: which files in it were written by a run of this user.

A run that is resumed goes on from a checkpoint, a cleaned teacher and results that lie in its
folder. Anybody who can change the folder could exchange them, and the student with them. So the
size and the SHA-256 of each are written to ``seal.json`` with a code (HMAC-SHA256) that depends on
the user's secret key, and on the settings, the teacher and the data of the run.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from robustkd.core.errors import InputError
from robustkd.core.files import read_json, replacing, write_json
from robustkd.core.folders import Folder

SEAL = "seal.json"
TRUST = "pass --trust-run if you trust the person who wrote it"
"""Advice in the messages about a run that may be another person's."""
_PIECE = 1 << 20
_KEPT = 2  # a process that is killed while it writes leaves the old file or the new one

_Fact = tuple[int, str]


class Seal:
    """What a run has written into its folder, marked with a secret key.

    Args:
        folder: The folder of the run.
        key: The secret key of the user; None where there is none, and nothing is checked.
        begun: What decides on the student; files of a run with other settings do not fit.
    """

    def __init__(self, folder: Path, key: bytes | None, begun: Mapping[str, object]) -> None:
        self._folder, self._key = folder, key
        self._run = json.dumps(begun, sort_keys=True)
        self._files: dict[str, list[_Fact]] = {}

    def open(self) -> None:
        """Read what an earlier process of the run has written down.

        Raises:
            InputError: If it is missing, was changed, or was marked with another key.
        """
        content = read_json(self._folder / SEAL)
        files, code = content.get("files"), content.get("hmac")
        if self._key is None or not isinstance(code, str) or not isinstance(files, dict):
            raise InputError(f"{self._folder / SEAL} is no seal")
        said = code.encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(said, self._code(files).encode()):
            raise InputError(f"{self._folder / SEAL} was not written by a run of yours")
        # Its form is that of `write`, since nobody else has the key.
        self._files = {
            name: [(size, digest) for size, digest in facts] for name, facts in files.items()
        }

    def trust(self, names: tuple[str, ...]) -> None:
        """Mark the files of these names in the folder as if this run had written them."""
        with Folder.at(self._folder) as folder:
            for name in filter(folder.has, names):
                with folder.open(name) as file:
                    self._files[name] = [_facts(file)]
        self.write()

    def write(self) -> None:
        """Write the seal into the folder.

        Raises:
            WriteError: If it cannot be written.
        """
        if self._key is not None:
            files = self._files
            write_json(self._folder / SEAL, {"files": files, "hmac": self._code(files)})

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give a path to write to, as `robustkd.core.files.replacing`, and mark what it holds.

        Raises:
            WriteError: If it cannot be written.
        """
        with replacing(self._folder / name) as path:
            with _named(path, self._folder / name):
                yield path
            with path.open("rb") as file:
                made = _facts(file)
            self._files[name] = [*self._files.get(name, []), made][-_KEPT:]
            self.write()

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give the path of a copy of a file, which nobody else can change, once it was checked.

        Raises:
            InputError: If the file is not one that a run of this user has written.
        """
        path = self._folder / name
        if self._key is None:
            yield path
            return
        try:
            private = tempfile.TemporaryDirectory(prefix="robustkd-run-")
        except OSError as error:
            raise _no_room(path, error) from error
        with private as place:
            copy = Path(place) / name
            try:
                with Folder.at(self._folder) as folder, folder.open(name) as file:
                    self._copy(file, copy)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_room(path, error) from error
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
            with _named(copy, path):
                yield copy

    def _copy(self, file: BinaryIO, to: Path) -> None:
        known = self._files.get(to.name, [])
        most = max((size for size, _ in known), default=0)
        with to.open("xb") as copy:
            if _facts(file, most=most, copy=copy) not in known:
                raise InputError(
                    f"{self._folder / to.name} was not written by this run: it was changed, or "
                    f"comes from another run; start a new run with --out, or {TRUST}"
                )

    def _code(self, files: Mapping[str, object]) -> str:
        text = json.dumps([self._run, files], sort_keys=True)
        return hmac.new(self._key or b"", text.encode(), "sha256").hexdigest()


def _no_room(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be copied to be checked: {error.strerror or error}; make room in the "
        "folder for temporary files, or set TMPDIR to another one"
    )


@contextmanager
def _named(copy: Path, path: Path) -> Iterator[None]:
    """Let errors on a copy name the file that it is a copy of."""
    try:
        yield
    except InputError as error:
        raise type(error)(str(error).replace(str(copy), str(path))) from error


def _facts(file: BinaryIO, *, most: int | None = None, copy: BinaryIO | None = None) -> _Fact:
    """Size and SHA-256 of a file, of which no more than ``most`` bytes and one piece are read."""
    size, digest = 0, hashlib.sha256()
    while (most is None or size <= most) and (piece := file.read(_PIECE)):
        size += len(piece)
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return size, digest.hexdigest()
