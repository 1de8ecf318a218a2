"""Seal of a run folder: an authenticated list of the files that a run of this user has written.

A resumed run continues from the checkpoint, the cleaned teacher and the results in its folder.
Anybody who can change the folder could replace these files, and thereby choose the student.
Therefore the size and the SHA-256 of each file are written to ``seal.json``, with a code
(HMAC-SHA256) that depends on the user's secret key and on the settings, the teacher and the data of
the run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from robustkd.core.errors import InputError, is_full, named, temporary_advice
from robustkd.core.files import read_json, replacing, write_json
from robustkd.core.folders import Folder
from robustkd.pipeline.run_files import SEAL

TRUST = "pass --trust-run if you trust the person who wrote it"
"""Advice in messages about a run that somebody else may have written."""
_PIECE = 1 << 20
_KEPT = 2  # a kill during a write leaves either the old file or the new one

_Fact = tuple[int, str]


class Seal:
    """Sizes and hashes of the files that a run has written, authenticated with a secret key.

    Args:
        folder: The folder of the run.
        key: The secret key of the user. If None, no seal is written and no file is verified.
        inputs: Settings, teacher and data of the run, on which the student depends. A seal is valid
            only for the same ones.
    """

    def __init__(self, folder: Path, key: bytes | None, inputs: Mapping[str, object]) -> None:
        self._folder, self._key = folder, key
        self._run = json.dumps(inputs, sort_keys=True)
        self._files: dict[str, list[_Fact]] = {}

    def open(self) -> None:
        """Read and verify the seal that an earlier process of the run has written.

        Raises:
            InputError: If the seal is missing, was changed, or was made with another key.
        """
        content = read_json(self._folder / SEAL)
        files, code = content.get("files"), content.get("hmac")
        if self._key is None or not isinstance(code, str) or not isinstance(files, dict):
            raise InputError(f"{self._folder / SEAL} is not a seal")
        said = code.encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(said, self._code(files).encode()):
            raise InputError(f"{self._folder / SEAL} was not written by a run of yours")
        # The code is valid, so `write` made the content, and its form needs no check.
        self._files = {
            name: [(size, digest) for size, digest in facts] for name, facts in files.items()
        }

    def trust(self, names: tuple[str, ...]) -> None:
        """Record the existing files of these names as if this run had written them."""
        with Folder.at(self._folder) as folder:
            for name in filter(folder.has, names):
                with folder.open(name) as file:
                    self._files[name] = [_facts(file)]
        if self._key is None:  # a seal of an earlier process would not list later files
            (self._folder / SEAL).unlink(missing_ok=True)
        self.write()

    def write(self) -> None:
        """Write the seal into the folder.

        Raises:
            WriteError: If the seal cannot be written.
        """
        if self._key is not None:
            files = self._files
            write_json(self._folder / SEAL, {"files": files, "hmac": self._code(files)})

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to, like `robustkd.core.files.replacing`, and seal the new file.

        Raises:
            WriteError: If the file or the seal cannot be written.
        """
        with replacing(self._folder / name) as path:
            with named(path, self._folder / name):
                yield path
            with path.open("rb") as file:
                made = _facts(file)
            self._files[name] = [*self._files.get(name, []), made][-_KEPT:]
            self.write()

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Yield the path of a private copy of a file, after verifying the copy.

        Raises:
            InputError: If the file was not written by this run, or cannot be read or copied.
        """
        path = self._folder / name
        if self._key is None:
            yield path
            return
        try:
            private = tempfile.TemporaryDirectory(prefix="robustkd-run-")
        except OSError as error:
            raise _not_copied(path, error) from error
        with private as place:
            copy = Path(place) / name
            try:
                with Folder.at(self._folder) as folder, folder.open(name) as file:
                    self._copy(file, copy)
            except OSError as error:
                if is_full(error):
                    raise _not_copied(path, error) from error
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
            with named(copy, path):
                yield copy

    def _copy(self, file: BinaryIO, to: Path) -> None:
        known = self._files.get(to.name, [])
        most = max((size for size, _ in known), default=0)
        with to.open("xb") as copy:
            found = _facts(file, most=most, copy=copy)
            if found not in known:
                raise InputError(
                    f"{self._folder / to.name} was not written by this run: it was changed, or "
                    f"comes from another run; start a new run with --out, or {TRUST}"
                )
        # Another listed file never reached its place, and would push this one off the list.
        self._files[to.name] = [found]

    def _code(self, files: Mapping[str, object]) -> str:
        text = json.dumps([self._run, files], sort_keys=True)
        return hmac.new(self._key or b"", text.encode(), "sha256").hexdigest()


def listed(folder: Path, name: str) -> bool:
    """Return whether the seal of a folder, which is not authenticated, lists a file as it is."""
    files = read_json(folder / SEAL).get("files")
    facts = files.get(name) if isinstance(files, dict) else None
    if not isinstance(facts, list):
        return False
    with Folder.at(folder) as opened, opened.open(name) as file:
        return list(_facts(file)) in facts


def _not_copied(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be copied for verification: {error.strerror or error}; "
        f"{temporary_advice(error)}"
    )


def _facts(file: BinaryIO, *, most: int | None = None, copy: BinaryIO | None = None) -> _Fact:
    """Return size and SHA-256 of a file; reading stops at the first piece beyond ``most`` bytes."""
    size, digest = 0, hashlib.sha256()
    while (most is None or size <= most) and (piece := file.read(_PIECE)):
        size += len(piece)
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return size, digest.hexdigest()
