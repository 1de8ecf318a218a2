"""Classes of a folder: their order, and lists that name them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from robustkd.core.errors import InputError
from robustkd.data import Reading, load_folder
from robustkd.data.images.class_names import _FORM
from tests.data.images.image_files import write_classes, write_splits
from tests.data.sources.folders import names, refused


def test_classes_in_the_order_of_a_file(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 3, "b": 4, "c": 5})
    order = tmp_path / "classes.txt"
    order.write_text("c\na\nb\n")
    data = load_folder(folder, Reading(classes=order))
    assert data.classes == ("c", "a", "b")
    assert np.bincount(data.parts["train"].labels).tolist() == [3, 1, 2]
    assert names(data, "train")[0].startswith("c/")
    same = Reading(classes=str(order))
    assert (same, hash(same)) == (Reading(classes=order), hash(Reading(classes=order)))
    assert load_folder(folder, same).classes == ("c", "a", "b")
    assert load_folder(folder, Reading(classes=["c", "a", "b"])).classes == ("c", "a", "b")
    # Some editors write a byte order mark, CRLF and empty lines at the end.
    order.write_text("c\r\na\r\nb\r\n\r\n  \r\n", encoding="utf-8-sig")
    assert load_folder(folder, Reading(classes=order)).classes == ("c", "a", "b")
    order.write_text("c\na\n../b\n")
    refused(folder, f"{order} lacks the class 'b' that the folder has; add it", classes=order)
    order.write_text("c\na\nb\nc")
    refused(folder, f"{order} names the class 'c' twice; remove one", classes=order)
    order.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_folder(folder, Reading(classes=order))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "".join(f"{i}\n" for i in range(200_000)) + "0\n",
            "names the class '0' twice; remove one",
        ),
        ("x" * 1_500_000, f"lacks the class 'a', 'b' that the folder has; add it: {_FORM}"),
        (
            f"1{' ' * 1_500_000}",
            f"lacks the class 'a', 'b' that the folder has; add it: {_FORM}",
        ),
    ],
    ids=["many lines", "one line", "spaces"],
)
def test_a_large_file_of_classes_is_refused_at_once(content, message, tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    order = tmp_path / "classes.txt"
    order.write_text(content)
    started = time.perf_counter()
    refused(folder, f"{order} {message}", classes=order)
    assert time.perf_counter() - started < 10


def test_names_that_no_report_can_show_are_refused(tmp_path):
    counts = {"a": 3, "b": 3}
    long = write_classes(tmp_path / ("d" * 121), counts)
    refused(
        long,
        f"{'d' * 121} is not a valid name for results; expected at most 120 characters: rename "
        "the folder",
    )
    folder = write_classes(tmp_path / "data", {**counts, "c" * 121: 3})
    refused(
        folder,
        f"{folder}: the name of the folder '{'c' * 121}' has 121 characters; expected at most "
        "120 characters: rename it",
    )


@pytest.mark.parametrize(
    ("lines", "names", "outputs", "of"),
    [
        (["bee", "ant"], ("bee", "ant"), (), None),
        (["cat", "bee", "dog", "ant", "eel"], ("bee", "ant"), (1, 3), 5),
        (["309 bee", "310: ant"], ("bee", "ant"), (309, 310), None),
        (["310,ant", "309\tbee"], ("bee", "ant"), (309, 310), None),
    ],
)
def test_a_list_of_classes_may_choose_outputs_of_the_teacher(lines, names, outputs, of, tmp_path):
    root = write_classes(tmp_path / "insects", {"ant": 6, "bee": 6})
    (tmp_path / "names.txt").write_text("\n".join(lines))
    found = load_folder(root, Reading(classes=tmp_path / "names.txt"))
    assert (found.classes, found.outputs, found.outputs_of) == (names, outputs, of)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 bee", "1 ant"], "has the output '1' twice; remove one"),
        (["1 bee", "2 bee"], "has the class 'bee' twice; remove one"),
        (["cat", "bee", "dog"], "lacks the class 'ant' that the folder has; add it"),
        (["1 bee", "ant"], "lacks the class 'bee' that the folder has; add it"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(lines, message, tmp_path):
    root = write_classes(tmp_path / "insects", {"ant": 6, "bee": 6})
    (tmp_path / "names.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        load_folder(root, Reading(classes=tmp_path / "names.txt"))


ONE, TWO = "caf\u00e9", "cafe\u0301"
"""One name in the forms of most systems and of macOS."""


@pytest.mark.parametrize(("first", "second"), [(ONE, TWO), (TWO, ONE)])
def test_names_that_look_the_same_are_the_same_class_in_every_split(first, second, tmp_path):
    folders = {"train": (first, "tea"), "val": (second, "tea"), "test": (first, "tea")}
    write_splits(tmp_path, {split: dict.fromkeys(names, 4) for split, names in folders.items()})
    found = load_folder(tmp_path)
    assert found.classes == (first, "tea")
    (batch,) = found.batches("validation", batch_size=10)
    assert batch.labels.tolist() == [0] * 4 + [1] * 4
    assert load_folder(tmp_path, Reading(classes=("tea", second))).classes == ("tea", first)


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_two_folders_whose_names_look_the_same_are_refused(part, tmp_path):
    if part:
        write_splits(tmp_path, {"train": {ONE: 4, "tea": 4}, "test": {ONE: 4, "tea": 4}})
    write_classes(tmp_path / part, {ONE: 4, TWO: 4, "tea": 4})
    refused(
        tmp_path,
        f"{tmp_path / part}: the names of the folders 'cafe\\u0301' and 'caf\\xe9' differ only in "
        "how Unicode writes their accents, so they are the same class; merge the folders",
    )


@pytest.mark.parametrize(
    ("lines", "outputs"),
    [(["tea", TWO], ()), (["bread", TWO, "tea"], (1, 2)), ([f"7 {TWO}", "9 tea"], (7, 9))],
)
def test_a_file_of_class_names_may_use_the_other_form(lines, outputs, tmp_path):
    write_classes(tmp_path / "images", {ONE: 12, "tea": 12})
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines))
    found = load_folder(tmp_path / "images", Reading(classes=names))
    assert set(found.classes) == {ONE, "tea"}
    assert found.outputs == outputs


def test_a_file_of_class_names_may_not_name_a_class_in_both_forms(tmp_path):
    write_classes(tmp_path / "images", {ONE: 12, "tea": 12})
    names = tmp_path / "names.txt"
    for lines in ([ONE, TWO, "tea"], [f"7 {ONE}", f"8 {TWO}", "9 tea"]):
        names.write_text("\n".join(lines))
        with pytest.raises(InputError, match=f"the class '{ONE}' twice; remove one"):
            load_folder(tmp_path / "images", Reading(classes=names))


def test_a_folder_with_other_classes_than_the_model_is_named(tmp_path):
    """The folder can be changed, the model cannot."""
    write_splits(tmp_path, {"train": {"ant": 12, "bee": 12}})
    use = "or use the data that the model was trained for"
    folder = tmp_path / "train"
    refused(
        tmp_path,
        f"{folder} has the class 'bee' that the model lacks; remove it, {use}",
        classes=("ant",),
    )
    refused(
        tmp_path,
        f"{folder} lacks the class 'cat' that the model has; add it, {use}",
        classes=("bee", "cat", "ant"),
    )
