"""Compilation of networks by ``torch.compile``, whose generated code only this user can write."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustkd.core.devices import default_device
from robustkd.core.errors import UsageError, WriteError
from robustkd.training.processes import ONE, Processes

_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_SHARED = "torchinductor_"
"""Start of the name of PyTorch's own folder, below that for temporary files."""
_LONGEST = 200
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

Run = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def check_compiler() -> None:
    """Check that code for the processor can be compiled, if trainings use it.

    Raises:
        UsageError: If there is no C++ compiler.
    """
    if default_device().type != "cpu":
        return
    usual = "clang++" if sys.platform == "darwin" else "g++"
    whole = os.environ.get("CXX", "").strip() or usual
    name = whole.split()[0]
    if shutil.which(whole) is None and shutil.which(name) is None:
        raise UsageError(
            f"compile needs a C++ compiler, and there is no {name}; install it, or set CXX to "
            "another one"
        )


def use_private_caches() -> None:
    """Let PyTorch's compiler store the code that it generates where only this user can write.

    By default, this is a folder below the one for temporary files, with a name that other users
    know and can take first; the code in it would run. A new folder takes its place, and is removed
    when the process ends. Folders that the user names in the environment variables
    ``TORCHINDUCTOR_CACHE_DIR`` and ``TRITON_CACHE_DIR`` are kept. PyTorch itself writes its own
    folder into the first variable when it imports its compiler; this folder is replaced.

    Raises:
        WriteError: If the folder cannot be created.
    """
    own = str(Path(tempfile.gettempdir(), _SHARED))
    missing = [name for name in _CACHES if (os.environ.get(name) or own).startswith(own)]
    if not missing:
        return
    try:
        folder = tempfile.mkdtemp(prefix="robustkd-compiled-")
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"no folder for compiled code can be created: {reason}") from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:
        os.environ[name] = str(Path(folder, _CACHES[name]))


class Compiled:
    """A function that is compiled at its first call, and again for other kinds of inputs.

    Args:
        run: Function to compile.
        otherwise: Function that is called instead, from then on, if the compilation fails.
        processes: Processes that train together; the first one prints a line about a failure.
        name: What is compiled, for this line.
        failed: Called once if the compilation fails.

    Raises:
        UsageError: If there is no C++ compiler.
        WriteError: If no folder for the generated code can be created.
    """

    def __init__(
        self,
        run: Run,
        otherwise: Run,
        processes: Processes = ONE,
        *,
        name: str = "network",
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        check_compiler()
        use_private_caches()
        settings: Any = importlib.import_module("torch._inductor.config")
        # Headers would be compiled into the folder that other users can take first.
        settings.cpp_cache_precompile_headers = False
        # Compilation in this process: workers would be processes that stay until the end.
        settings.compile_threads = 1
        self._run: Run | None = torch.compile(run)
        self._otherwise, self._processes = otherwise, processes
        self._name, self._failed = name, failed

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits and features of a batch."""
        if self._run is not None:
            try:
                with _quiet():
                    return self._run(images)
            except torch.OutOfMemoryError:
                raise  # without compilation, more memory is needed
            except Exception as error:  # of the compiler, which has many kinds
                if _was_interrupted(error):
                    return self._otherwise(images)
                self._run = None
                self._failed()
                if self._processes.first:
                    print(self._line(error), file=sys.stderr, flush=True)
        return self._otherwise(images)

    def _line(self, error: Exception) -> str:
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        return f"the {self._name} cannot be compiled and runs as it is: {reason}"


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C or SIGTERM ended the C++ compiler, which is no fault of the network.

    A terminal sends Ctrl-C to the compiler as well. The training decides whether it stops.
    """
    while error is not None:
        if isinstance(error, subprocess.CalledProcessError) and -error.returncode in _INTERRUPTS:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the compiler logs about a failure, which is told in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
