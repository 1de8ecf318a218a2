"""Decoding of large images in a child process with limited time and memory, `watched_child`.

Each decoding process has one such child, which is started for the first large image.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import jaxtyping
import numpy as np
import PIL
from jaxtyping import UInt8

from robustkd.core.errors import InputError
from robustkd.data.images.pixels import Channels, UndecodableError
from robustkd.data.images.watched_child import ANSWER, REQUEST, SHAPE

MOST_MEMORY = 1 << 31
MOST_SECONDS = 10
_PATIENCE = 60 * MOST_SECONDS
_CHILD = Path(__file__).with_name("watched_child.py")


def unpack(
    content: bytes,
    *,
    size: int,
    channels: Channels,
    crop: float,
    squash: bool,
    resample: int,
) -> UInt8[np.ndarray, "channels {size} {size}"]:
    """Run `robustkd.data.images.pixels.unpack` in the child process.

    Raises:
        UndecodableError: If the image is damaged, has an unsupported format, or takes too much
            time or memory.
        InputError: If the process cannot be started.
    """
    request = REQUEST.pack(size, channels, crop, squash, resample, len(content))
    answer = _ask(request, content)
    return np.frombuffer(answer, dtype=np.uint8).reshape(channels, size, size)


def shape(content: bytes) -> tuple[int, int]:
    """Run `robustkd.data.images.pixels.shape` in the child process."""
    width, height = SHAPE.unpack(_ask(REQUEST.pack(0, 1, 1.0, False, 0, len(content)), content))
    return width, height


class _Child:
    """The child process, with pipes to and from it."""

    def __init__(self) -> None:
        packages = {str(Path(str(package.__file__)).parents[1]) for package in (np, PIL, jaxtyping)}
        limits = map(str, (MOST_MEMORY, MOST_SECONDS))
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-B", str(_CHILD), *limits, *sorted(packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The stacks of library threads would use up the limited memory.
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            cwd=Path(__file__).anchor,
        )

    def ask(self, head: bytes, content: bytes) -> tuple[bool, bytes]:
        """Send one request and return the answer.

        Raises:
            EOFError: If the process has died.
            TimeoutError: If the process does not answer.
        """
        target, source = _pipe(self.process.stdin), _pipe(self.process.stdout)
        try:
            target.write(head)
            target.write(content)
            target.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        if not select.select([source], [], [], _PATIENCE)[0]:
            raise TimeoutError
        refused, length = ANSWER.unpack(_exactly(source, ANSWER.size))
        return bool(refused), _exactly(source, length)

    def end(self) -> int:
        """Stop the process, and return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                _pipe(pipe).close()
        return self.process.wait()


_children: dict[int, _Child] = {}


def _ask(head: bytes, content: bytes) -> bytes:
    own = os.getpid()
    try:
        if own not in _children:
            # A forked process must not use the pipes of its parent.
            _children[own] = _Child()
            atexit.register(_end_own, own)
        refused, answer = _children[own].ask(head, content)
    except EOFError:
        raise _death(_children.pop(own).end()) from None
    except TimeoutError as error:
        _children.pop(own).end()
        message = f"no answer in {_PATIENCE} seconds from the process that decodes large images"
        raise InputError(f"{message}; is the machine overloaded?") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"no process for decoding large images can be started: {reason}"
        ) from error
    except BaseException:
        # After an interrupt, a late answer would be taken for that of the next image.
        _end_own(own)
        raise
    if refused:
        raise UndecodableError(answer.decode())
    return answer


def _death(code: int) -> Exception:
    """Return the error for an exit code of the process."""
    if code == -signal.SIGXCPU:
        return UndecodableError(f"it takes more than {MOST_SECONDS} seconds")
    if code == -signal.SIGKILL:
        return InputError(
            "the process that decodes large images was killed from outside: memory ran out, or "
            "it was stopped; free some memory, or use fewer --workers"
        )
    if code < 0:
        return UndecodableError(f"it crashes the decoder (signal {-code})")
    if code == 0:
        # If SIGCHLD is ignored, the exit status of a child is lost and reads as 0.
        return UndecodableError("it takes too long, or crashes the decoder")
    return InputError(f"the process that decodes large images ended with exit code {code}")


def _end_own(own: int) -> None:
    if own == os.getpid() and own in _children:
        child = _children.pop(own)
        child.process.kill()
        child.end()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("no pipe")
    return pipe


def _exactly(source: IO[bytes], length: int) -> bytes:
    found = source.read(length)
    if len(found) < length:
        raise EOFError
    return found
