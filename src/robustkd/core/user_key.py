"""Secret key of the user, which authenticates the files that the user's own runs have written.

No other user can read the key, so a file with a valid code (HMAC) was written by a run of this
user.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.core.folders import NO_LINK, Folder

KEY = "run-key"
_BYTES = 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_REMOVE = "remove it, and the next run will create a new key"


def state_folder() -> Path:
    """Return the folder for persistent state of this user, by the convention of the system.

    Raises:
        InputError: If there is no home directory.
    """
    if given := os.environ.get("XDG_STATE_HOME", ""):
        return Path(given) / "robustkd"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InputError("there is no home directory; set XDG_STATE_HOME to a folder") from error
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "robustkd"
    return home / ".local" / "state" / "robustkd"


def user_key() -> bytes:
    """Return the user's key of 32 random bytes, which is created on first use.

    Raises:
        InputError: If the key cannot be created or read, or if other users may read it.
    """
    path = state_folder() / KEY
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Folder.at(path.parent) as folder:
            if not folder.has(KEY):
                _make(folder)
            with folder.open(KEY) as file:
                found, key = os.fstat(file.fileno()), file.read(_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror or error}") from error
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise InputError(f"{path} can be read by other users; {_REMOVE}")
    if len(key) != _BYTES:
        raise InputError(f"{path} has another size than {_BYTES} bytes; {_REMOVE}")
    return key


def _make(folder: Folder) -> None:
    """Create the key under a random name, then link it, so that no process reads half of it."""
    name = f"{KEY}-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder.descriptor), "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):  # another process has created the key meanwhile
            os.link(name, KEY, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    finally:
        folder.remove(name)
