"""Allocator settings: a process that frees large blocks does not ask for their pages again."""

import platform
import subprocess
import sys

import pytest

from robustkd.core import allocator
from robustkd.core.allocator import keep_freed_memory

# Page faults of a process that, as a training step does, fills several large blocks and frees them.
FAULTS = """
import resource, runpy, sys
if sys.argv[1] == "kept":
    assert runpy.run_path(sys.argv[2])["keep_freed_memory"]()
def step():
    return len([b"a" * (8 << 20) for _ in range(10)])
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    command = [sys.executable, "-c", FAULTS, mode, allocator.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_reused():
    assert faults("kept") < faults("default") / 4


def test_other_systems_are_not_changed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
