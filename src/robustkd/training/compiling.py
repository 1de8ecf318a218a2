"""Compilation of networks by ``torch.compile``, whose generated code only this user can write."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from robustkd.core.devices import default_device
from robustkd.core.errors import InputError, UsageError
from robustkd.core.user_key import state_folder
from robustkd.training.processes import ONE, Processes

_FOLDER = "compiled"
_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_LONGEST = 200

Run = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def check_compiler() -> None:
    """Check that code for the processor can be compiled, if trainings use it.

    Raises:
        UsageError: If there is no C++ compiler.
    """
    if default_device().type != "cpu":
        return
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise UsageError(
            f"compile needs a C++ compiler, and there is no {name}; install it, set CXX to another "
            "one, or leave compile out"
        )


def use_private_caches() -> None:
    """Let PyTorch's compiler store the code that it generates where only this user can write.

    By default, this is a folder below the one for temporary files, with a name that other users
    know and can take first; the code in it would run. Folders in the environment variables
    ``TORCHINDUCTOR_CACHE_DIR`` and ``TRITON_CACHE_DIR`` are kept.

    Raises:
        InputError: If the folder cannot be created, or other users may write to it.
    """
    missing = [variable for variable in _CACHES if not os.environ.get(variable)]
    if not missing:
        return
    path = state_folder() / _FOLDER
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror or error}") from error
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not own or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(
            f"{path} is not a folder that only you can use; remove it, and the next run will "
            "create it again"
        )
    for variable in missing:
        os.environ[variable] = str(path / _CACHES[variable])


class Compiled:
    """A function that is compiled at its first call, and again for other kinds of inputs.

    Args:
        run: Function to compile.
        otherwise: Function that is called instead, from then on, if the compilation fails.
        processes: Processes that train together; the first one prints a line about a failure.
    """

    def __init__(self, run: Run, otherwise: Run, processes: Processes = ONE) -> None:
        check_compiler()
        use_private_caches()
        # Compilation in this process: workers would be processes that stay until the end.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        self._run: Run | None = torch.compile(run)
        self._otherwise, self._processes = otherwise, processes

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits and features of a batch."""
        if self._run is not None:
            try:
                return self._run(images)
            except Exception as error:  # of the compiler, which has many kinds
                self._run = None
                if self._processes.first:
                    print(_failure(error), file=sys.stderr, flush=True)
        return self._otherwise(images)


def _failure(error: Exception) -> str:
    reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    return f"a network cannot be compiled and runs as it is: {reason}"
