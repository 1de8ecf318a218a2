"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

LONG = (
    "test_hostile_surroundings.py",
    "test_presets.py",
    "test_python_runs.py",
    "test_interrupted_runs.py",
    "test_run.py",
    "test_distilling.py",
    "test_resuming.py",
    "test_runner.py",
    "test_hostile_folders.py",
    "test_distillation.py",
    "test_hostile.py",
)
"""Files of tests that take longest; they begin first, so that no process ends long after others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests of long files to the beginning."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # also in programs that the tests start


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory) -> Iterator[None]:
    """Give the tests, and the processes that they start, a secret key of their own."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """In this process, `--data digits` has 300 images for training instead of 1,200."""
    # Imported after the plugin that checks the types of our packages has been set up.
    from robustkd.data import SOURCES
    from robustkd.data.sources.digits import load_digits

    def few(root: Path | None = None) -> object:
        return load_digits(root).subset(train=300)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "digits", few)
        yield
