"""The recorded journey: the screen of the terminal, and the generated page."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from robustkd import data
from tools.journey import CLASSES, COLUMNS, JOURNEY, PAGE, SIZE, make_images, make_teacher, travel
from tools.terminal import Screen, _meanwhile, record

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("one\ntwo\r\n", "one\ntwo"),
        ("10 %\r20 %\r100 %", "100 %"),
        ("100 %\r20 %", "20 %%"),
        ("100 %\r\x1b[K20 %", "20 %"),
        ("a\nb\nc\x1b[2A\rA\x1b[2B\rC", "A\nb\nC"),
        ("a\nb\nc\x1b[1A\r\x1b[J", "a"),
        ("\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b[?25l", "red link"),
        ("abc\x1b[2DX", "aXc"),
        ("abc\b\bX", "aXc"),
        ("\x1b[5GX", "    X"),
        ("x" * 12, "x" * 10 + "\nxx"),
        ("x" * 10 + "\ny", "x" * 10 + "\ny"),
    ],
)
def test_the_screen_shows_what_a_terminal_shows(output, expected):
    screen = Screen(columns=10)
    for letter in output if "\x1b" not in output else [output]:
        screen.feed(letter)
    assert screen.text() == expected


PROGRAM = """
import os, sys, time
print(sys.stdout.isatty(), *os.get_terminal_size(), os.environ["COLUMNS"])
for part in range(5):
    print(f"\\r{part * 20:3} %", end="", flush=True)
    time.sleep(0.1)
print("\\r\\x1b[Kdone \\u2588")
sys.exit(3)
"""


def test_a_recording_has_the_end_and_the_middle(tmp_path):
    found = record([sys.executable, "-c", PROGRAM], folder=tmp_path, environment=os.environ)
    assert (found.code, found.end) == (3, "True 80 24 80\ndone \u2588")
    assert found.meanwhile.endswith(" %")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0 %"), (4.4, "20 %"), (8.2, "a\n40 %"), (10.0, "a\n40 %"), (100.0, "80 %")],
)
def test_the_middle_is_the_busy_state_nearest_to_half_of_the_time(seconds, expected):
    states = [(1.0, "0 %"), (2.0, "20 %"), (3.0, "50 %\na"), (4.0, "a\n40 %"), (9.0, "80 %")]
    assert _meanwhile([*states, (10.0, "done")], seconds) == expected


def test_without_a_progress_bar_there_is_no_middle():
    assert _meanwhile([], 1.0) == _meanwhile([(0.5, "50 %\ndone")], 1.0) == ""


def test_a_command_that_fails_ends_the_recording(tmp_path):
    with pytest.raises(RuntimeError, match=r"robustkd report no: exit code 3"):
        next(travel(tmp_path, [("A mistake", "report no")]))


def test_the_page_has_every_command_in_80_columns():
    text = (ROOT / PAGE).read_text()
    for heading, words in JOURNEY:
        assert f"\n## {heading}\n" in text
        assert f"\n$ robustkd {words}\n" in text
    shown = [
        line for block in text.split("```text\n")[1:] for line in block.split("```")[0].splitlines()
    ]
    assert [line for line in shown if len(line) > COLUMNS and not line.startswith("$")] == []
    assert "Traceback" not in text
    assert str(ROOT) not in text


def test_images_and_teacher_are_those_described_on_the_page(tmp_path):
    make_images(tmp_path / "images")
    make_teacher(tmp_path / "teacher", tmp_path / "images", epochs=0)
    found = data.load_folder(tmp_path / "images")
    assert found.image_shape == (3, SIZE, SIZE)
    assert set(found.classes) == set(CLASSES)
    assert found.size("train") == 80 * len(CLASSES)
    assert {"config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "teacher"))
