"""Compilation: private caches, a clear error without a compiler, and a fallback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustkd.core.errors import UsageError, WriteError
from robustkd.training import compiling
from robustkd.training.compiling import Compiled, check_compiler, use_private_caches

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and an environment that tests may change."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in CACHES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("given", ["no-such-compiler", "no-such-compiler -O2"])
def test_without_a_compiler_the_error_names_it(given, monkeypatch):
    monkeypatch.setenv("CXX", given)
    message = (
        "compile needs a C++ compiler, and there is no no-such-compiler; install it, or set CXX to "
        "another one"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        check_compiler()


@pytest.mark.parametrize("before", [None, "", "torchinductor_me"])
def test_generated_code_is_where_only_the_user_can_write(before, temporary, monkeypatch):
    if before is not None:  # PyTorch writes its own folder when it imports its compiler
        monkeypatch.setenv(CACHES[0], before and str(temporary / before))
    old = os.umask(0)
    try:
        use_private_caches()
    finally:
        os.umask(old)
    (made,) = temporary.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert [os.environ[name] for name in CACHES] == [str(made / "inductor"), str(made / "triton")]
    use_private_caches()
    assert list(temporary.iterdir()) == [made]


def test_folders_of_the_user_are_kept(temporary, monkeypatch):
    for name in CACHES:
        monkeypatch.setenv(name, f"/mine/{name}")
    use_private_caches()
    assert not list(temporary.iterdir())
    assert [os.environ[name] for name in CACHES] == [f"/mine/{name}" for name in CACHES]


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    message = "no folder for compiled code can be created: No such file or directory"
    with pytest.raises(WriteError, match=f"^{message}$"):
        use_private_caches()


@pytest.mark.slow
def test_nothing_is_stored_in_a_folder_shared_with_other_users(temporary):
    """The compiler is imported before, as some methods do, and compiles code for the processor."""
    code = (
        "import torch, torch._dynamo\n"
        "from robustkd.training.compiling import Compiled\n"
        "def otherwise(x): raise SystemExit('not compiled')\n"
        "Compiled(lambda x: (x.sin() + x.cos(), ()), otherwise)(torch.ones(1000))\n"
    )
    given = {"TMPDIR": str(temporary), "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **given})
    left = [path for path in temporary.rglob("*") if path.is_file()]
    assert not left


def test_a_lack_of_memory_is_no_failure_of_the_compiler(monkeypatch):
    def failing(_run: compiling.Run) -> compiling.Run:
        def run(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            raise torch.OutOfMemoryError

        return run

    monkeypatch.setattr(torch, "compile", failing)
    made = Compiled(lambda x: (x, ()), lambda x: (x + 1, ()))
    with pytest.raises(torch.OutOfMemoryError):
        made(torch.zeros(1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_compiler_is_no_fault_of_the_network(number, monkeypatch, capsys):
    """A terminal sends Ctrl-C to the compiler as well; this process stops after its step."""
    codes = iter([-number, 0])

    def interrupted(run: compiling.Run) -> compiling.Run:
        def compiled(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            code = next(codes)
            if code:
                try:
                    raise subprocess.CalledProcessError(code, "g++")
                except subprocess.CalledProcessError as error:
                    raise RuntimeError("C++ compile error") from error
            return run(images)

        return compiled

    monkeypatch.setattr(torch, "compile", interrupted)
    made = Compiled(lambda x: (x, ()), lambda x: (x + 1, ()), failed=pytest.fail)
    zero = torch.zeros(1)
    assert [made(zero)[0].item(), made(zero)[0].item()] == [1, 0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("first", [True, False])
def test_networks_that_cannot_be_compiled_run_uncompiled(first, monkeypatch, capsys):
    tries = []

    def failing(_run: compiling.Run) -> compiling.Run:
        def run(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            tries.append(images)
            raise RuntimeError("two\nlines")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    processes = compiling.Processes(0 if first else 1, 2)
    closed: list[bool] = []
    made = Compiled(
        lambda x: (x, ()),
        lambda x: (x + 1, ()),
        processes,
        name="teacher",
        failed=lambda: closed.append(True),
    )
    zero = torch.zeros(1)
    assert [made(zero)[0].item(), made(zero)[0].item()] == [1, 1]
    assert len(tries) == 1
    assert len(closed) == 1
    line = "the teacher cannot be compiled and runs as it is: two lines\n" if first else ""
    assert capsys.readouterr().err == line
