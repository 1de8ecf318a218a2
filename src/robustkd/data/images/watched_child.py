"""Child process that decodes large images with limited time and memory, without the package.

It is run as a script. For every request on standard input it writes one answer to standard output.
"""

from __future__ import annotations

import importlib.util
import io
import math
import resource
import signal
import struct
import sys
from pathlib import Path
from types import ModuleType

REQUEST = struct.Struct(">IBd?BQ")
"""Request: size of the result, or 0 to ask for the shape; channels; crop; whether to squash; number
of Pillow's filter; bytes that follow."""
ANSWER = struct.Struct(">BQ")
"""Answer: whether it is the reason of a refusal; bytes that follow."""
SHAPE = struct.Struct(">II")


def serve(memory: int, seconds: int) -> None:
    """Answer requests until the input ends.

    Args:
        memory: Largest address space in bytes.
        seconds: Largest processor time of each request.
    """
    pixels = _sibling("pixels")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(REQUEST.size):
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = math.ceil(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))
        *form, length = REQUEST.unpack(head)
        refused, answer = _answer(pixels, io.BytesIO(source.read(length)), *form)
        target.write(ANSWER.pack(refused, len(answer)))
        target.write(answer)
        target.flush()


def _answer(
    pixels: ModuleType,
    content: io.BytesIO,
    size: int,
    channels: int,
    crop: float,
    squash: bool,
    resample: int,
) -> tuple[bool, bytes]:
    try:
        if not size:
            return False, SHAPE.pack(*pixels.shape(content))
        found = pixels.unpack(
            content,
            size=size,
            channels=channels,
            crop=crop,
            watched=True,
            squash=squash,
            resample=resample,
        )
        return False, found.tobytes()
    except pixels.UndecodableError as error:
        return True, str(error).encode(errors="backslashreplace")


def _sibling(name: str) -> ModuleType:
    """Import a module of this folder directly, because importing the package would load torch."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    # The module must be registered for its annotations to be resolved.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.path += sys.argv[3:]
    serve(int(sys.argv[1]), int(sys.argv[2]))
