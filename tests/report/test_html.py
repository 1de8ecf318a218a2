from __future__ import annotations

import json
import re
import resource
import struct
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from robustkd.core.errors import InputError
from robustkd.report import write_html
from robustkd.report.arrays import read_arrays

from .conftest import make_run

HOSTILE = "<script>alert(1)</script>$\\frac$\"'&"


class Page(HTMLParser):
    """What the browser would make of the file."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data.replace("\u00a0", " ")


def page(folder):
    return Page(write_html(folder).read_text(encoding="utf-8"))


def test_one_file_with_everything_and_nothing_to_load(write, arrays):
    path = write_html(write(arrays=arrays))
    found = Page(path.read_text(encoding="utf-8"))
    assert path.name == "report.html"
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "url(http" not in path.read_text(encoding="utf-8")
    assert found.tags.count("svg") == 2
    for heading in ("The trigger", "Predictions under the", "What detoxification removes"):
        assert heading in found.text
    assert "Attack success rate: 63.9 % for the ordinary student" in found.text
    assert "RobustKD (default)" in found.text


def test_ids_are_unique_and_the_file_is_the_same_each_time(write, arrays):
    folder = write(arrays=arrays)
    first = write_html(folder).read_bytes()
    assert write_html(folder).read_bytes() == first
    svgs = re.findall(r"<svg.*?</svg>", first.decode(), flags=re.DOTALL)
    for svg in svgs:
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("key", ["data", "pair", "attack", "method"])
def test_hostile_names_are_plain_text(write, key):
    runs = [make_run(**{key: HOSTILE}), make_run(**{key: "other"})]
    found = page(write(runs))
    assert "script" not in found.tags
    assert HOSTILE in found.text


def test_hostile_classes_settings_and_stages_are_plain_text(write, arrays):
    arrays["mask/default/" + "<img src=x>"] = arrays["mask/default/group1"]
    arrays["predictions/<b>"] = arrays["labels"]
    folder = write(
        arrays=arrays,
        records={"classes": ["a", HOSTILE, "../\n", "d"]},
        config={HOSTILE: {"x": HOSTILE}},
        environment={HOSTILE: HOSTILE},
    )
    found = page(folder)
    assert not {"script", "b"} & set(found.tags)
    assert "x" not in found.links
    assert HOSTILE in found.text
    assert f"{HOSTILE}.x" in found.text


def test_the_facts_of_the_teacher_file_have_their_section(write):
    facts = {"name": HOSTILE, "bytes": 7, "filled": 0, "wrappers": [], "converted": {"float16": 3}}
    found = page(write(records={"teacher_file": facts}))
    assert "Teacher file" in found.text
    assert HOSTILE in found.text
    assert "Tensors converted to float32, by type3 from float16" in found.text
    assert "Batch counters" not in found.text
    facts["converted"] = {}
    assert "Tensors converted" not in page(write(records={"teacher_file": facts})).text
    assert "teacher_file" not in found.text
    for none in ({}, {"teacher_file": "x"}):
        assert "Teacher file" not in page(write(records=none)).text


def test_an_unknown_trigger_is_stated(write):
    found = page(write([make_run(asr=None, ra=None), make_run(method="default", asr=None)]))
    assert "images is known. ASR could not be measured, as no trigger is known." in found.text
    assert found.tags.count("svg") == 1


def test_a_large_drop_of_accuracy_is_an_alert_with_advice(write):
    for acc, alert in ((0.8, True), (0.97, False)):
        runs = [make_run(method="teacher", acc=0.98, asr=None, ra=None, n_acc=500)]
        runs.append(make_run(method="default", acc=acc, asr=None, ra=None, n_acc=500))
        path = write_html(write(runs, records={"teacher_file": {"name": "t.pt"}}))
        text = path.read_text(encoding="utf-8")
        assert ('<p class="lede alert"><strong>Large drop of accuracy:</strong>' in text) is alert
        assert ("The loss of accuracy is large." in text) is alert
        assert "robustkd evaluate student.safetensors" in " ".join(Page(text).text.split())


def epochs(n):
    return [{"epoch": 1.0 + i, "loss": 2.0, "ofd": 1.5, "validation": 0.5} for i in range(n)]


def test_epochs_are_drawn_and_listed_with_their_values(write):
    found = page(write(records={"epochs": epochs(3), "kept": 2}))
    assert found.tags.count("svg") == 2 + 2
    assert "The student has the weights of epoch 2." in found.text
    for text in ("Training curves", "1.5", "0.5"):
        assert text in found.text
    assert "epoch, loss" not in found.text
    path = write_html(write(records={f"{name}/0": {"epochs": epochs(1)} for name in ("ofd", "kd")}))
    assert "Numbers of each epoch: ordinary student (KD)" in path.read_text()


def test_classes_come_with_their_largest_losses_first(write):
    n = 40
    counts = {"images": [10] * n, "teacher": [9] * n, "student": list(range(10)) * 4}
    counts["images"][3] = counts["teacher"][3] = counts["student"][3] = 0
    names = [f"class-{i}" for i in range(n)]
    found = page(write(records={"by_class": counts, "classes": names}))
    places = [found.text.index(f"class-{i}1090.0") for i in (0, 10, 1, 9)]
    assert places == sorted(places)
    assert "class-0" + "10" + "90.0" + "0.0" + "\u221290.0" in found.text
    assert "The other 24 classes" in found.text  # a class without test images has no accuracy
    assert "class-300" not in found.text


def test_detoxification_lists_its_strengths_and_the_one_that_was_kept(write):
    curve = [
        {"variance_weight": w, "accuracy": a, "variance_ratio": 0.3, "within_budget": ok}
        for w, a, ok in ((1.0, 0.98, True), (4.0, 0.97, True), (16.0, 0.9, False))
    ]
    detox = {"stages": ["net.a"], "mean_mask": [0.1], "variance_ratio": [0.3], "curve": curve}
    detox |= {"accuracy_before": 0.985, "accuracy_after": 0.97}
    text = write_html(write(records={"detox": detox})).read_text(encoding="utf-8")
    assert re.findall(r'<tr class="kept"><th scope="row">(\w+)</th>', text) == ["4"]
    assert "98.5 % as given, 97.0 % with the masks" in text
    for point in curve:
        point["within_budget"] = False
    text = write_html(write(records={"detox": detox})).read_text(encoding="utf-8")
    assert "the teacher was not changed" in text


def test_headings_are_in_order_and_tables_have_captions_and_scopes(write, arrays):
    text = write_html(write(arrays=arrays, records={"epochs": epochs(2)})).read_text("utf-8")
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert '<html lang="en">' in text
    assert not re.search(r"<th(?![^>]*scope=)[ >]", text)
    for table in re.findall(r'<table class="(?:results|facts).*?</table>', text, re.DOTALL):
        assert "<caption>" in table
    assert all('role="img" aria-label="' in svg for svg in re.findall(r"<svg[^>]*>", text))
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", text))


@pytest.mark.parametrize(
    "kept", [(), ("images",), ("images", "triggered"), ("trigger_mask",), ("predictions/ofd",)]
)
def test_arrays_may_be_missing(write, arrays, kept):
    found = page(write(arrays={key: arrays[key] for key in kept}))
    assert ("The trigger" in found.text) == (kept in {("images", "triggered"), ("trigger_mask",)})
    assert ("Predictions under the" in found.text) == (kept == ("images", "triggered"))


def test_flat_arrays_and_colour_images_are_drawn(write):
    images = np.zeros((2, 3, 80, 80))
    arrays = {"images": images, "triggered": images, "mask/paper/s": np.zeros((2, 4, 4))}
    assert "RobustKD (paper)" in page(write(arrays=arrays)).text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", np.zeros((1, 8, 8)), "images is float64 of shape [1, 8, 8]; expected numbers "
         "of shape [k, C, H, W]"),
        ("labels", np.zeros(3), "labels is float64 of shape [3]; expected whole numbers of shape "
         "[k]"),
        ("labels", np.array([1, 2]), "labels has 2 entries; expected 3, one per image"),
        ("triggered", np.zeros((3, 1, 4, 4)), "triggered has shape [3, 1, 4, 4]; expected the "
         "shape of images, [3, 1, 8, 8]"),
        ("trigger_mask", np.full((1, 8, 8), 255), "trigger_mask has values from 255 to 255; "
         "expected values in [0, 1]"),
        ("mask/a/b", np.full((1, 2, 2), np.nan), "mask/a/b has values from nan to nan; expected "
         "values in [0, 1]"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(write, arrays, key, value, message):
    folder = write(arrays=arrays | {key: value})
    with pytest.raises(InputError) as caught:
        write_html(folder)
    assert str(caught.value) == f"{folder}/arrays.npz: {message}"


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(write, content):
    folder = write()
    (folder / "arrays.npz").write_bytes(content)
    message = r"arrays.npz: not an .npz file of plain arrays \(.*\); repeat the run$"
    with pytest.raises(InputError, match=message):
        write_html(folder)


def npy(shape: str, content: bytes) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            [npy("(8000000,)", bytes(8_000_000))],
            "an array decompresses to more than 200 times its size",
        ),
        (
            [npy("(60000000,)", bytes(60_000_000))] * 2,
            "it decompresses to more than 67,108,864 bytes",
        ),
        ([npy("(1 << 40,)", bytes(9))], ""),
        ([npy("(1099511627776,)", bytes(9))], "the size of an array differs from its header"),
        ([npy("(3,), \\", bytes(3))], ""),  # numpy's tokenizer fails on it
        ([npy("(1,)", bytes(1))] * 1001, "it has 1001 arrays, expected at most 1000"),
    ],
)
def test_arrays_that_decompress_to_too_much_are_refused(write, members, reason):
    folder = write()
    with zipfile.ZipFile(folder / "arrays.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, member in enumerate(members):
            archive.writestr(f"mask/{i}.npy", member)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        InputError, match=rf"not an .npz file of plain arrays \({reason}.*\); repeat"
    ):
        read_arrays(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16


def test_pickled_arrays_are_refused(write):
    folder = write()
    np.savez(folder / "arrays.npz", images=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"not an .npz file of plain arrays"):
        write_html(folder)


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = (
        "import json, sys, robustkd; before = set(sys.modules); import robustkd.report;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not {"torch", "matplotlib", "numpy"} & loaded
