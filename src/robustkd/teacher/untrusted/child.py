"""Main function of the child process that reads a hostile file.

Standard input is the file, standard output the safetensors file to write, and standard error a
file for one JSON object, the verdict. The arguments are five numbers: bytes of memory, seconds of
processor time, largest number of bytes to write, the number of the state dict whose values to write
(or -1 for names, types and shapes of all), and whether the file may be read without a filter of
system calls (1). The verdict follows a space, which is written before the file is read: a process
that fails without it has failed for a reason of the system.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import resource
import sys
from io import BufferedIOBase
from typing import NamedTuple

from robustkd.teacher.untrusted import limits
from robustkd.teacher.untrusted.contents import Contents, Refusal, quoted
from robustkd.teacher.untrusted.formats import HEAD, recognise
from robustkd.teacher.untrusted.read_checkpoint import read_checkpoint
from robustkd.teacher.untrusted.read_legacy import FORMAT, read_legacy
from robustkd.teacher.untrusted.read_safetensors import read_safetensors
from robustkd.teacher.untrusted.write_safetensors import write_layout, write_plain

BEGUN = b" "
"""First byte of the verdict, written when the file is about to be read."""
_MOST_IGNORED = 20
_TOO_WEAK = (
    "is not read: this system has no seccomp, so a flaw in the reader could be exploited; use "
    "Linux on x86-64 or arm64, or accept the risk with --allow-weak-sandbox"
)
_NO_ROOM = "make sure that the folder for temporary files (TMPDIR) has room for two copies of it"
_READERS = {"safetensors": read_safetensors, "torch zip": read_checkpoint, FORMAT: read_legacy}


class Lower(NamedTuple):
    """Limits in bytes that the system sets this process, where they are lower than the granted.

    They are determined before the file is read, when system calls are not filtered yet.
    """

    memory: int | None = None
    written: int | None = None

    @classmethod
    def than(cls, *, memory: int, written: int) -> Lower:
        """Compare the limits of this process with those that the parent process grants."""
        allowed = limits.allowed(resource.RLIMIT_AS), limits.allowed(resource.RLIMIT_FSIZE)
        pairs = zip(allowed, (memory, written), strict=True)
        return cls(*(most if most < granted else None for most, granted in pairs))


def load_codecs() -> None:
    """Load the codecs that pickletools imports on demand, which is not possible later."""
    codecs.lookup("raw-unicode-escape")


def find_tensors(file: BufferedIOBase, size: int, *, choice: int | None = None) -> list[Contents]:
    """Locate the tensors of each state dict in a file of ``size`` bytes and any accepted format.

    Raises:
        Refusal: If the file has another format, is damaged, or is malicious.
    """
    file.seek(0)
    format_name = recognise(file.read(HEAD))
    file.seek(0)
    return _READERS[format_name](file, size, choice=choice)


def convert(
    file: BufferedIOBase,
    out: BufferedIOBase,
    size: int,
    *,
    choice: int | None = 0,
    lower: Lower = Lower(),  # noqa: B008 (immutable)
) -> list[Contents]:
    """Write the tensors of one state dict of ``file``, or only the layout of all, to ``out``.

    Returns:
        All state dicts that were found.

    Raises:
        Refusal: If the file is refused, or ``out`` cannot be written.
    """
    try:
        contents = find_tensors(file, size, choice=choice)
        if choice is None:
            write_layout(contents, out)
        elif choice < len(contents):
            write_plain(contents[choice], file, out)
        else:
            raise Refusal("has fewer state dicts than before; it changed while it was read")
        out.flush()
    except OSError as error:
        raise _not_written(error, lower) from error
    except MemoryError:
        # The refusal is raised outside of the handler: the frames of the error keep memory in use.
        pass
    else:
        return contents
    if lower.memory is not None:
        raise Refusal(
            "cannot be read: it needs more memory than this process may use; raise the limit "
            "(ulimit -v)"
        )
    raise Refusal("needs more memory than is granted for a file of its size")


def _not_written(error: OSError, lower: Lower) -> Refusal:
    """Return the refusal of a file whose tensors cannot be written, with the cause."""
    if error.errno != errno.EFBIG:
        reason, advice = error.strerror or "I/O error", _NO_ROOM
    elif lower.written is not None:
        reason = f"this process may not write a file of more than {lower.written} bytes"
        advice = "raise the limit (ulimit -f)"
    else:
        reason = "its tensors take more bytes than are granted for a file of its size"
        advice = "save its state dict alone"
    return Refusal(f"cannot be converted: {reason}; {advice}")


def main() -> None:
    """Read the file and write the verdict."""
    memory, seconds, written, choice, weak = map(int, sys.argv[1:])
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    size = os.fstat(0).st_size
    load_codecs()
    with open(0, "rb") as file, open(1, "wb") as out, _Peak() as peak:
        lower = Lower.than(memory=memory, written=written)
        enforced = limits.give_up(memory=memory, seconds=seconds, written=written)
        os.write(2, BEGUN)
        try:
            if not weak and limits.SYSTEM_CALLS not in enforced:
                raise Refusal(_TOO_WEAK)
            found = convert(
                file,
                out,
                size,
                choice=None if choice < 0 else choice,
                lower=lower,
            )
            said = {
                "format": found[0].format,
                "ordered": found[0].ordered,
                "candidates": [
                    {
                        "wrappers": contents.wrappers,
                        "ignored": [quoted(key) for key in contents.ignored[:_MOST_IGNORED]],
                        "more": max(0, len(contents.ignored) - _MOST_IGNORED),
                    }
                    for contents in found
                ],
            }
        except Refusal as refusal:
            said = {"refusal": str(refusal)}
        os.write(2, json.dumps({**said, "enforced": enforced, "peak_mib": peak.mib()}).encode())
        # The regular shutdown of Python needs system calls that are no longer allowed.
        os._exit(0)


class _Peak:
    """Peak memory of this process; created before the process can no longer open files."""

    def __enter__(self) -> _Peak:
        try:
            self._status = os.open("/proc/self/status", os.O_RDONLY)
        except OSError:
            self._status = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._status >= 0:
            os.close(self._status)

    def mib(self) -> float | None:
        """Return the peak in MiB; None if the system does not provide it."""
        if self._status < 0:
            return None
        # Not getrusage, whose peak includes that of the parent process.
        lines = os.pread(self._status, 1 << 14, 0).splitlines()
        held = next((line.split()[1] for line in lines if line.startswith(b"VmHWM:")), b"0")
        return int(held) / 1024
