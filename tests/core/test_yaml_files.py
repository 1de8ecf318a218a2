"""YAML that people write."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkd.core.errors import InputError
from robustkd.core.yaml_files import read_yaml


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("a: [1, 2.5, no]", {"a": [1, 2.5, False]}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("- {a: 1}\n- {a: 2}", [{"a": 1}, {"a": 2}]),
    ],
)
def test_it_is_what_yaml_says(text, content, tmp_path):
    assert read_yaml(written(tmp_path, text)) == content


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\na: 1", "a", 2),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "b", 4),
        ("- {a: 1}\n- {a: 1, 'a': 2}", "a", 2),
    ],
)
def test_a_key_that_stands_twice_at_any_depth_is_refused(text, key, line, tmp_path):
    with pytest.raises(InputError, match=f"says '{key}' twice, in line {line}; leave one of them$"):
        read_yaml(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["a: [", "!!python/object/apply:os.system ['touch x']", b"\xff\xfe\x00", "[" * 3000, "[a]: 1"],
)
def test_what_is_no_plain_yaml_is_told_in_one_line(text, tmp_path):
    with pytest.raises(InputError, match=r"some\.yaml cannot be read as YAML: ") as error:
        read_yaml(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_mapping_that_holds_itself_is_read(tmp_path):
    content = read_yaml(written(tmp_path, "&x {a: *x}"))
    assert content["a"] is content


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)
