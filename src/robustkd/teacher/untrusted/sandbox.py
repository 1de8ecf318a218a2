"""Starting the reading process, enforcing its time limit, and validating its verdict."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from robustkd.teacher.untrusted.child import BEGUN
from robustkd.teacher.untrusted.limits import allowed

_MIB = 1 << 20
_START = (
    "import sys; sys.path.append({root!r}); "
    "from robustkd.teacher.untrusted.child import main; main()"
)
_LONGEST_VERDICT = 1 << 17
_TOO_LATE = -1000
_LONGEST_REASON = 500
_MOST_COUNTED = 1 << 32


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Other keys in the file of a state dict.

    Attributes:
        wrappers: Keys that lead to the state dict, outermost first.
        ignored: The first keys that were not read, quoted.
        more: Number of further ones.
    """

    wrappers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    more: int = 0


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """Result and cost of the reading process.

    Attributes:
        refusal: Reason why the file is refused; empty if it was read.
        format: Format of the file.
        candidates: Surroundings of each state dict in the file.
        ordered: Whether the tensors are in the order in which the network has them.
        enforced: The limits that were in force.
        seconds: Wall time.
        peak_mib: Peak memory of the process in MiB; None if unknown.
    """

    refusal: str
    format: str = ""
    candidates: tuple[Surroundings, ...] = ()
    ordered: bool = False
    enforced: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Limits of the reading process: memory and output in bytes, processor time in seconds.

    It also states which state dict to read, or -1 to read only names, types and shapes of all, and
    whether to read without a filter of system calls.
    """

    memory: int
    seconds: int
    written: int
    choice: int = 0
    weak: bool = False

    @classmethod
    def for_size(cls, size: int, *, choice: int = 0, weak: bool = False) -> Grant:
        """Return limits that are sufficient for a regular file of ``size`` bytes."""
        # A strided tensor is in memory twice; values may be written twice (tied weights).
        memory, written = 256 * _MIB + 2 * size, 8 * _MIB + 2 * size
        return cls(memory, 30 + size // (20 * _MIB), written, choice, weak)

    @classmethod
    def for_layout(cls, *, weak: bool = False) -> Grant:
        """Return limits that are sufficient for names, types and shapes, for any file size."""
        return cls(256 * _MIB, 30, 64 * _MIB, choice=-1, weak=weak)


def run(source: int, target: int, grant: Grant) -> ReadOutcome:
    """Convert the open file ``source`` to the open file ``target`` in a child process.

    Raises:
        OSError: If the system has no room for the verdict, or starts no process.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        # Room for the verdict, so that the process can say that the disk is full.
        said.write(bytes(_LONGEST_VERDICT))
        said.seek(0)
        process = _spawn(source, target, said.fileno(), grant)
        # Wall time is limited as well, because a hanging process uses no processor time.
        status = _wait(process, deadline=started + 4 * grant.seconds)
        said.seek(0)
        verdict = said.read(_LONGEST_VERDICT).rstrip(b"\0")
    seconds = time.monotonic() - started
    begun = verdict.startswith(BEGUN)
    if status != 0 or not begun:
        return ReadOutcome(_failure(status, grant, begun=begun), seconds=seconds)
    return _parsed(verdict, seconds)


def _spawn(source: int, target: int, said: int, grant: Grant) -> int:
    root = Path(__file__).parents[3]
    numbers = map(str, map(int, astuple(grant)))
    # Isolated and without site packages: the standard library and the reader only.
    start = [sys.executable, "-I", "-S", "-B", "-c", _START.format(root=str(root)), *numbers]
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    handed_over = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate((source, target, said))]
    return os.posix_spawn(sys.executable, start, kept, file_actions=handed_over)


def _wait(process: int, *, deadline: float) -> int:
    """Return the exit code; negative for the signal that ended the process or for a timeout."""
    pause, ended, late = 0.002, 0, False
    try:
        while not ended:
            if not late and time.monotonic() > deadline:
                late = True
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, os.WNOHANG)
            time.sleep(0 if ended else pause)
            pause = min(2 * pause, 0.05)
    except ChildProcessError:
        # If SIGCHLD is ignored, the exit status is unknown; the verdict is sufficient.
        return _TOO_LATE if late else 0
    except BaseException:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        raise
    return _TOO_LATE if late else os.waitstatus_to_exitcode(status)


def _failure(status: int, grant: Grant, *, begun: bool) -> str:
    """Return why the process failed; before it begins to read, the file cannot be the cause."""
    if status == -signal.SIGXCPU and allowed(resource.RLIMIT_CPU) < grant.seconds:
        return (
            "cannot be read: the reading process had less processor time than it needs; raise the "
            "limit (ulimit -t)"
        )
    if status == -signal.SIGXFSZ:
        return (
            "cannot be read: the reading process may not write a file of the size that it needs; "
            "raise the limit (ulimit -f)"
        )
    if status in (-signal.SIGXCPU, _TOO_LATE):
        return f"takes longer than {grant.seconds} s to read; it is damaged or malicious"
    if status == -signal.SIGKILL:
        return (
            "cannot be read: the system killed the reading process, most likely because memory "
            "ran out"
        )
    if not begun:
        return (
            f"cannot be read: the reading process could not start (status {status}), most likely "
            "because of limits on memory or processes (ulimit -a); raise them"
        )
    return f"makes the reading process fail (status {status}); it is damaged or malicious"


def _parsed(verdict: bytes, seconds: float) -> ReadOutcome:
    """Parse the verdict, and check type, length and characters of each part."""
    try:
        said = json.loads(verdict)
        return ReadOutcome(
            _text(said.get("refusal", ""), _LONGEST_REASON),
            format=_text(said.get("format", "")),
            candidates=tuple(
                Surroundings(
                    tuple(_text(key) for key in each["wrappers"]),
                    tuple(_text(key) for key in each["ignored"]),
                    _count(each["more"]),
                )
                for each in said.get("candidates", ())
            ),
            ordered=said.get("ordered") is True,
            enforced=tuple(_text(key) for key in said["enforced"]),
            seconds=seconds,
            peak_mib=None if said["peak_mib"] is None else float(said["peak_mib"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ReadOutcome(
            "makes the reading process return an invalid verdict; it is damaged or malicious",
            seconds=seconds,
        )


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST_COUNTED:
        raise ValueError("not a count")
    return value


def _text(value: object, longest: int = 100) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("not a printable text")
    return value[:longest]
