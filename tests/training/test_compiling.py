"""Compilation: private caches, a clear error without a compiler, and a fallback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.training import compiling
from robustkd.training.compiling import Compiled, check_compiler, use_private_caches

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, and an environment that tests may change."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in (*CACHES, "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return tmp_path / "robustkd" / "compiled"


def test_without_a_compiler_the_error_names_it(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = (
        "compile needs a C++ compiler, and there is no no-such-compiler; install it, set CXX to "
        "another one, or leave compile out"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        check_compiler()


def test_generated_code_is_where_only_the_user_can_write(state):
    old = os.umask(0)
    try:
        use_private_caches()
    finally:
        os.umask(old)
    assert state.stat().st_mode & 0o777 == 0o700
    assert [os.environ[name] for name in CACHES] == [str(state / "inductor"), str(state / "triton")]


def test_folders_of_the_user_are_kept(state, monkeypatch):
    for name in CACHES:
        monkeypatch.setenv(name, f"/mine/{name}")
    use_private_caches()
    assert not state.exists()
    assert [os.environ[name] for name in CACHES] == [f"/mine/{name}" for name in CACHES]


@pytest.mark.parametrize("kind", ["writable", "readable", "link"])
def test_a_folder_that_others_can_use_is_refused(kind, state):
    state.parent.mkdir()
    if kind == "link":
        (state.parent / "elsewhere").mkdir(mode=0o700)
        state.symlink_to("elsewhere")
    else:
        state.mkdir()
        state.chmod(0o777 if kind == "writable" else 0o755)
    with pytest.raises(InputError, match="is not a folder that only you can use; remove it"):
        use_private_caches()
    assert not set(CACHES) & set(os.environ)


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(state):
    state.parent.write_text("a file")
    with pytest.raises(InputError, match=r"cannot be used: (File exists|Not a directory)$"):
        use_private_caches()


@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_compiled_runs_as_it_is(first, monkeypatch, capsys):
    tries = []

    def failing(_run: compiling.Run) -> compiling.Run:
        def run(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            tries.append(images)
            raise RuntimeError("two\nlines")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    processes = compiling.Processes(0 if first else 1, 2)
    made = Compiled(lambda x: (x, ()), lambda x: (x + 1, ()), processes)
    zero = torch.zeros(1)
    assert [made(zero)[0].item(), made(zero)[0].item()] == [1, 1]
    assert len(tries) == 1
    line = "a network cannot be compiled and runs as it is: two lines\n" if first else ""
    assert capsys.readouterr().err == line
