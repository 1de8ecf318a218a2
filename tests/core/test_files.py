"""Helpers for files."""

from __future__ import annotations

import os

import pytest

from robustkd.core.files import is_regular


def test_a_file_is_told_from_what_is_none(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "loop").symlink_to("loop")
    assert is_regular(file)
    assert is_regular(tmp_path / "link")
    for name in ("missing", "file/below", "loop", ".", "nul\0"):
        assert not is_regular(tmp_path / name), name
    os.mkfifo(tmp_path / "pipe")
    assert not is_regular(tmp_path / "pipe")


def test_an_error_other_than_of_a_missing_file_is_raised(tmp_path):
    """Python 3.14 would say that there is no file."""
    with pytest.raises(OSError, match="File name too long"):
        is_regular(tmp_path / ("n" * 300))
