"""Reading of YAML files, and refusal of large, complex or ambiguous ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustkd.core.errors import InputError
from robustkd.core.plain_yaml import _Loader
from robustkd.core.yaml_files import read_yaml


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("a: [1, 2.5, false, True]", {"a": [1, 2.5, False, True]}),
        ("on: [yes, no, On, off]", {"on": ["yes", "no", "On", "off"]}),
        ("a: [1e-3, 1.0e-3]", {"a": ["1e-3", 0.001]}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ("a: 'no'\nb: '2020-01-01'\nc: 0x10", {"a": "no", "b": "2020-01-01", "c": 16}),
        ("- {a: 1}\n- {a: 2}", [{"a": 1}, {"a": 2}]),
    ],
)
def test_files_are_read_as_yaml_defines(text, content, tmp_path):
    assert read_yaml(written(tmp_path, text)) == content


@pytest.mark.parametrize("text", ["1e-3", "-1e9", "1E308", "+.5e2", "2.e-1", "2.5e3", "1.0e+3"])
def test_a_number_with_an_exponent_is_read_where_a_number_is_expected(text, tmp_path):
    path = written(tmp_path, f"{text}: {text}")
    assert read_yaml(path, exponents=True) == {float(text): float(text)}


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", ".e3", "1e3.5", "1-e3"])
def test_text_that_looks_like_a_number_stays_text(text, tmp_path):
    assert read_yaml(written(tmp_path, text), exponents=True) == text


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\na: 1", "a", 2),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "b", 4),
        ("- {a: 1}\n- {a: 1, 'a': 2}", "a", 2),
    ],
)
def test_duplicate_keys_are_refused_at_any_depth(text, key, line, tmp_path):
    with pytest.raises(InputError, match=f"says '{key}' twice, in line {line}; leave one of them$"):
        read_yaml(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["a: [", b"\xff\xfe\x00", "a: 1\n--- b", "0b_"],
)
def test_other_yaml_is_refused_in_one_line(text, tmp_path):
    with pytest.raises(InputError, match=r"some\.yaml cannot be read as YAML: ") as error:
        read_yaml(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!bool maybe", "gives a value the type 'tag:yaml.org,2002:bool', in line 1; leave "),
        ("\na: !!int", "gives a value the type 'tag:yaml.org,2002:int', in line 2; leave "),
        ("!!python/object/apply:os.system ['touch x']", "gives a value the type 'tag:yaml.org,"),
        ("a: 2020-01-01", "has '2020-01-01', which YAML reads as a timestamp, in line 1; put it "),
        ("a: 2020-13-45", "has '2020-13-45', which YAML reads as a timestamp, in line 1; put it "),
        ("=: 1", "has '=', which YAML reads as a value, in line 1; put it in quotes"),
        ("<<: {a: 1}", "has '<<', which YAML reads as a merge, in line 1; put it in quotes"),
        ("[a]: 1", "has a list or a mapping as a key, in line 1; use text or a number"),
        ("a: " + "9" * 101, "has a number of 101 characters, in line 1; shorten it"),
        ("a: 1" + ":59" * 60_000, "has a number of 180,001 characters, in line 1; shorten it"),
        ("[" * 3000, "has more than 32 nested lists or mappings, in line 1; make it "),
        ("- " * 3000, "has more than 32 nested lists or mappings, in line 1; make it "),
        ("[" + "1," * 10_000 + "]", "has more than 10,000 values, in line 1; make it smaller"),
        ("x" * (1 << 18) + "y", "cannot be read: it has more than 262,144 bytes"),
    ],
)
@pytest.mark.parametrize("anchors", [False, True])
def test_large_or_complex_yaml_is_refused_in_one_line(
    text, message, anchors, tmp_path, monkeypatch
):
    monkeypatch.setattr(_Loader, "construct_document", lambda *_: pytest.fail("a value was made"))
    with pytest.raises(InputError) as error:
        read_yaml(written(tmp_path, text), anchors=anchors)
    assert str(error.value).startswith(f"{tmp_path / 'some.yaml'} {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: &x 1", "a: *x"])
def test_anchors_are_read_only_where_they_are_expected(text, tmp_path):
    sign = text[3:5]
    with pytest.raises(InputError, match=f"has the name '{re.escape(sign)}', in line 1; write the"):
        read_yaml(written(tmp_path, text))


def test_anchored_values_can_be_repeated(tmp_path):
    path = written(tmp_path, "a: &x {b: 1}\nc: *x")
    assert read_yaml(path, anchors=True) == {"a": {"b": 1}, "c": {"b": 1}}


BOMB = "\n".join(["x0: &x0 [1, 1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 30))])
KEYS = "\n".join(
    ["a0: &a0 {b: 1}", *(f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}}}" for i in range(1, 30))]
)
CHAIN = "\n".join(["x0: &x0 [1]", *(f"x{i}: &x{i} [*x{i - 1}]" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "has more than 10,000 values, in line 12; make it smaller"),
        (KEYS, "has more than 10,000 values, in line 11; make it smaller"),
        (CHAIN, "has more than 32 nested lists or mappings, in line 31; make it flat"),
        ("&x {a: *x}", "has 'x' within itself, in line 1; write it out"),
        ("*unknown", "cannot be read as YAML: found undefined alias"),
        ("&x [*x]", "has 'x' within itself, in line 1; write it out"),
    ],
)
def test_aliases_count_as_the_values_they_repeat(text, message, tmp_path):
    with pytest.raises(InputError) as error:
        read_yaml(written(tmp_path, text), anchors=True)
    assert str(error.value).startswith(f"{tmp_path / 'some.yaml'} {message}")


def test_missing_files_are_reported(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)
