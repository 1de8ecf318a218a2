"""The order of the classes may be a text or JSON, as libraries write it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustkd.core.errors import InputError
from robustkd.data.images.class_names import ClassNames, read_class_names

FOUND = ("ant", "bee", "cat")
ORDER = ("cat", "ant", "bee")
IDS = {name: number for number, name in enumerate(ORDER)}
LABELS = {str(number): name for name, number in IDS.items()}
MORE = {"3": "dog", **LABELS}
FORM = (
    "expected one name per line, in the order of the teacher's outputs; or a JSON list of names; "
    "or a JSON object of names and numbers"
)


def read(path: Path, content: object) -> ClassNames:
    path = path / "names"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_class_names(path, FOUND)


@pytest.mark.parametrize(
    "content",
    [
        list(ORDER),
        IDS,
        LABELS,
        {"id2label": LABELS, "label2id": IDS, "model_type": "vit"},
        {"class_to_idx": IDS},
        {"label_names": list(ORDER), "num_classes": 3},
        "\ufeff" + json.dumps(list(ORDER)),
        "\n".join(ORDER),
    ],
)
def test_the_usual_forms(content, tmp_path):
    assert read(tmp_path, content) == ClassNames(ORDER)


def test_a_teacher_of_more_classes(tmp_path):
    assert read(tmp_path, MORE) == ClassNames(ORDER, (0, 1, 2), 4)
    assert read(tmp_path, [*ORDER, "dog"]) == ClassNames(ORDER, (0, 1, 2), 4)
    # Not all outputs are named, so their number is that of the teacher's file.
    named = {"7": "bee", "9": "ant", "12": "cat", "13": "dog"}
    assert read(tmp_path, named) == ClassNames(("bee", "ant", "cat"), (7, 9, 12))


def test_a_name_may_begin_with_a_bracket(tmp_path):
    path = tmp_path / "names"
    path.write_text("[unk]\n{x\n")
    assert read_class_names(path, ("[unk]", "{x")).names == ("[unk]", "{x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": list(ORDER)}, f"has JSON of another kind; {FORM}"),
        ({}, f"has JSON of another kind; {FORM}"),
        ([1, 2, 3], f"has JSON of another kind; {FORM}"),
        ({"ant": 0.5, "bee": 1, "cat": 2}, f"has JSON of another kind; {FORM}"),
        ({"ant": True, "bee": False, "cat": 2}, f"has JSON of another kind; {FORM}"),
        ({"ant": -1, "bee": 1, "cat": 2}, f"has JSON of another kind; {FORM}"),
        ({"ant": 10**12, "bee": 1, "cat": 2}, f"has JSON of another kind; {FORM}"),
        ({"ant": 1, "bee": 1, "cat": 2}, "has the output '1' twice; remove one"),
        ({"0": "ant", "1": "ant"}, "has the class 'ant' twice; remove one"),
        (["ant", "bee"], "lacks the class 'cat' that the folder has; add it"),
        ({"ant": 0, "bee": 1}, "lacks the class 'cat' that the folder has; add it"),
        (["ant", "ant", "bee"], "names the class 'ant' twice; remove one"),
        (
            "names:\n  0: ant\n  1: bee\n  2: cat\n",
            f"lacks the class 'ant', 'bee', 'cat' that the folder has; add it: {FORM}",
        ),
        ("['ant', 'bee', 'cat']", f"that the folder has; add it: {FORM}"),
        ("[" * 100_000, f"that the folder has; add it: {FORM}"),
        (
            "ant 0\nbee 1\ncat 2\n",
            "has the number behind the name in 'ant 0'; write it before the name, or leave it out",
        ),
    ],
)
def test_other_forms_are_refused_with_what_is_expected(content, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message) + "$"):
        read(tmp_path, content)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_another_encoding_is_named(codec, tmp_path):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(codec, b"")
    found = "not in UTF-8" if codec == "latin-1" else "in UTF-16"
    said = f"{tmp_path / 'names'} cannot be read as text (it is {found}; save it in UTF-8); correct"
    with pytest.raises(InputError, match=f"^{re.escape(said)} it$"):
        read(tmp_path, mark + "é\nbee\ncat".encode(codec))
