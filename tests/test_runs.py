"""The run folder is made once, and files in it are whole or not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustkd.errors import InputError, UsageError
from robustkd.runs import environment, free_name, new_folder, write_json


def test_a_new_folder_is_made_with_its_parents_and_an_empty_one_taken(tmp_path):
    path = tmp_path / "a" / "b"
    assert new_folder(path) == path
    assert path.is_dir()
    assert new_folder(path) == path


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path):
    (tmp_path / ".hidden").touch()
    message = f"output folder {tmp_path} is not empty; give a new one with --out"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        new_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


@pytest.mark.parametrize(
    ("below", "reason"), [("file", "File exists"), ("file/run", "Not a directory")]
)
def test_a_folder_that_cannot_be_made_is_refused(below, reason, tmp_path):
    (tmp_path / "file").touch()
    message = f"output folder {tmp_path / below} cannot be made: {reason}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        new_folder(tmp_path / below)


def test_the_first_free_name(tmp_path):
    path = tmp_path / "demo.1"
    assert free_name(path) == path
    path.mkdir()
    assert free_name(path) == tmp_path / "demo.1-2"
    (tmp_path / "demo.1-2").touch()
    (tmp_path / "demo.1-4").touch()
    assert free_name(path) == tmp_path / "demo.1-3"


def test_json_comes_back_and_nothing_else_is_left(tmp_path):
    content = {"käse": [1, 2.5, None, "λ"], "empty": {}}
    write_json(tmp_path / "r.json", content)
    write_json(tmp_path / "r.json", content | {"again": True})
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == content | {"again": True}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_what_is_no_json_leaves_the_old_file_whole(tmp_path):
    write_json(tmp_path / "r.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"new": Path()})
    assert json.loads((tmp_path / "r.json").read_text()) == {"old": 1}


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "missing" / "r.json"
    message = f"{path} cannot be written: No such file or directory"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        write_json(path, {})


def test_the_environment_names_versions_and_the_machine():
    import torch

    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"robustkd", "python", "device", "cores", "machine", "system"} < set(found)
