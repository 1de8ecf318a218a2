"""Words in a file of flags that some versions of YAML read as booleans."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkd import cli
from robustkd.core.errors import InputError

FLAGS = "data: digits\narch: wrn-10-1\nstudent: wrn-10-1\n"


def told(folder: Path, text: str) -> dict[str, object]:
    """Return the arguments of ``distill`` with a file of flags."""
    path = folder / "flags.yaml"
    path.write_text(FLAGS + text)
    words = ["distill", "t.pt", "--config", str(path)]
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


@pytest.mark.parametrize("word", ["no", "'no'"])
def test_no_is_read_as_a_precision(word, tmp_path):
    assert told(tmp_path, f"precision: {word}")["training"] == {"precision": "no"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [("true", True), ("yes", True), ("On", True), ("false", False), ("no", False), ("off", False)],
)
def test_boolean_flags_accept_every_boolean_word_of_yaml(word, meant, tmp_path):
    found = told(tmp_path, f"audit: {word}\nkeep-class-order: {word}\ncompile: {word}")
    assert (found["audit"], found["keep_class_order"]) == (meant, meant)
    assert found["training"] == {"compile": meant}


def test_a_folder_may_be_named_off(tmp_path):
    assert told(tmp_path, "data_root: off")["data_root"] == Path("off")


def test_the_key_on_is_not_read_as_a_boolean(tmp_path):
    assert told(tmp_path, "defence: clp\non: student")["on"] == "student"
    with pytest.raises(InputError, match=r"holds no flags; expected lines such as 'epochs: 30'$"):
        told(tmp_path, "defence: clp\ntrue: student")


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    assert told(tmp_path, "data_root: 1e5\nlr: 1e-3")["data_root"] == Path("1e5")
