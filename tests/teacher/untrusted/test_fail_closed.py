"""Without the sandbox, files are refused unless the user allows it; limits besides seccomp."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import robustkd
from robustkd.core.errors import InputError
from robustkd.teacher.read import load_teacher
from robustkd.teacher.untrusted import quarantine, sandbox
from tests.teacher.untrusted.attempt import distil
from tests.teacher.untrusted.samples import SPEC, saved, weights

ON_LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
WITHOUT = (
    "import sys; sys.path.append({root!r}); from robustkd.teacher.untrusted import limits; "
    "limits._filter_calls = lambda _: False; "
    "from robustkd.teacher.untrusted.child import main; main()"
)
SAYS = (
    "is not read: this system has no seccomp, so a flaw in the reader could be exploited; use "
    "Linux on x86-64 or arm64, or accept the risk with --allow-weak-sandbox"
)


@pytest.fixture
def no_seccomp(monkeypatch):
    monkeypatch.setattr(sandbox, "_START", WITHOUT)


@pytest.fixture
def teacher(tmp_path) -> Path:
    (tmp_path / "teacher.pt").write_bytes(saved(weights()))
    return tmp_path / "teacher.pt"


def test_files_are_refused_without_seccomp(no_seccomp, teacher, tmp_path):
    with pytest.raises(InputError) as caught:
        quarantine.read(teacher)
    assert str(caught.value) == f"{teacher} {SAYS}"
    ending = distil(teacher, tmp_path)
    assert (ending.code, ending.err) == (3, f"robustkd: {teacher} {SAYS}\n")


def test_the_user_may_allow_reading_without_seccomp(no_seccomp, teacher, tmp_path):
    found = quarantine.read(teacher, weak=True)
    assert found.tensors.keys() == weights().keys()
    assert "system calls" not in found.verdict.enforced
    options = {"arch": SPEC.arch, "classes": SPEC.classes, "image_shape": SPEC.image_shape}
    load_teacher(teacher, **options, mean=(0.5,), std=(0.5,), allow_weak_sandbox=True)
    ending = distil(teacher, tmp_path, flags=["--allow-weak-sandbox"])
    # The file is read, and then refused, since the network in it is not trained.
    assert (ending.code, "near chance" in ending.err) == (3, True)
    run = partial(robustkd.run, teacher, "digits", "wrn-10-1", arch="wrn-10-1", out=tmp_path / "py")
    with pytest.raises(InputError, match="near chance"):
        run(allow_weak_sandbox=True)
    with pytest.raises(InputError, match="this system has no seccomp"):
        run()


@pytest.mark.parametrize("key", ["allow_weak_sandbox", "allow-weak-sandbox", "Allow_Weak-Sandbox"])
@pytest.mark.parametrize("value", ["true", "false", "null"])
def test_no_configuration_file_may_allow_reading_without_seccomp(key, value, teacher, tmp_path):
    """A configuration file may come from the author of the teacher."""
    config = tmp_path / "config.yaml"
    config.write_text(f"{key}: {value}\n")
    ending = distil(teacher, tmp_path, flags=["--config", str(config)])
    assert (ending.code, ending.verdict) == (3, None)
    assert f"{config} sets allow_weak_sandbox, which may weaken" in ending.err


@pytest.mark.skipif(not ON_LINUX, reason="system calls are filtered on Linux alone")
def test_with_seccomp_files_are_read_by_default(teacher):
    assert "system calls" in quarantine.read(teacher).verdict.enforced


ACTS = {
    "open": "open('precious')",
    "list": "os.listdir('.')",
    "create": "open('canary', 'w')",
    "remove": "os.unlink('precious')",
    "folder": "os.mkdir('canary')",
    "link": "os.symlink('precious', 'canary')",
    "truncate": "os.truncate('precious', 0)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is a part of Linux")
def test_landlock_alone_keeps_files_from_harm(tmp_path):
    (tmp_path / "precious").write_text("x")
    tries = "".join(
        f"try: {act}; print('{name}')\nexcept OSError: pass\n" for name, act in ACTS.items()
    )
    start = (
        "import os, ctypes\nfrom robustkd.teacher.untrusted.limits import _leave_files\n"
        "print(_leave_files(ctypes.CDLL(None, use_errno=True)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + tries],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    enforced, *possible = done.stdout.splitlines()
    if enforced == "False":
        pytest.skip("this kernel has no Landlock")
    assert possible == []
    assert (tmp_path / "precious").read_text() == "x"
    assert os.listdir(tmp_path) == ["precious"]


def test_processes_are_limited_for_an_ordinary_user(tmp_path):
    """The limit does not apply to root, which the filter of system calls restricts."""
    code = (
        "import os, sys, ctypes\nfrom robustkd.teacher.untrusted import limits\n"
        "limits._filter_calls = lambda _: False\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "enforced = limits.give_up(memory=1 << 30, seconds=5, written=1 << 20)\n"
        "assert 'no further processes' in enforced\n"
        "try: os.fork()\nexcept OSError: os._exit(7)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 7
