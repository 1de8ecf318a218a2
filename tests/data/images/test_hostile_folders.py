"""Hostile data folders end in exit code 3 and one line, or are read as ordinary images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from robustkd import cli, data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.data.images.hostile_folders import CASES, Case, sound
from tests.marks import slow


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A model that tells dark from light."""
    folder = tmp_path_factory.mktemp("sound")
    source = data.load_folder(sound(folder / "data"))
    model = models.build(models.Spec("wrn-10-1", 2, (3, 16, 16)), seed=0)
    fit(Supervised(model), source, epochs=3, batch_size=16)
    models.save(model, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


@pytest.fixture
def distil(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*options: str, out: str = "run") -> Said:
        arguments = ["--arch", "wrn-10-1", "--student", "wrn-10-1", "--data", "./data"]
        arguments += ["--out", out, "--method", "no-teacher", "--epochs", "1", "--no-audit"]
        arguments += options
        capsys.readouterr()
        code = 0
        try:
            cli.main(["distill", str(teacher), *arguments])
        except SystemExit as stop:
            code = stop.code
        return Said(code, *capsys.readouterr())

    return run


SLOW = (
    "10,000 empty folders",
    "400 folders",
    "class called light[",
    "class called light..",
    'class called light"',
    "palette",
    "grey",
    "RGBA images, dark",
)
"""Expensive cases, and those of whose kind a quick one stays."""


@pytest.mark.parametrize(
    "case",
    [slow(case) if any(part in case.name for part in SLOW) else case for case in CASES],
    ids=lambda case: case.name,
)
def test_hostile_folders_are_refused_or_read_safely(case: Case, distil, tmp_path):
    root = sound(tmp_path / "data").resolve()
    case.spoil(root)
    said = distil()
    if case.message is None:
        assert said.code == 0
        # Of the data, nothing but how they are read, and the accuracy of the teacher.
        assert re.fullmatch(
            r"images: 16 x 16 pixels .*\nteacher: teacher\.safetensors, .* on 20 validation .*\n",
            said.err,
        )
        rows = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
        # Whatever the images are stored as, dark is dark and light is light.
        assert rows[0]["acc"] == 1.0
        assert "<script>" not in (tmp_path / "run" / "report.html").read_text()
        return
    assert (said.code, said.out) == (3, "")
    message = (
        re.escape(case.message.replace("{root}", str(root)))
        .replace(r"\#", r"\d+")
        .replace("@", r"[d/]+\.\.\.[d/]+")
    )
    assert re.fullmatch(f"robustkd: {message}\n", said.err)
    assert not (tmp_path / "run").exists()


def test_hostile_class_names_are_plain_text_in_the_report(distil, tmp_path):
    root = sound(tmp_path / "data")
    name = "light<script>alert(1)<"
    for split in ("train", "val", "test"):
        (root / split / "light").rename(root / split / name)
    assert distil().code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["records"]["classes"] == ["dark", name]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "light&lt;script&gt;alert(1)&lt;" in page
    assert name not in page


@pytest.mark.parametrize("streaming", ["--streaming", slow("--no-streaming")])
@pytest.mark.slow
def test_a_folder_gives_the_same_student_streamed_or_held(distil, tmp_path, streaming):
    sound(tmp_path / "data")
    assert distil("--streaming").code == 0
    first = (tmp_path / "run" / "student.safetensors").read_bytes()
    assert distil(streaming, "--workers", "2", out="again").code == 0
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == first


def test_the_split_is_written_into_the_run_and_reused(distil, tmp_path, capsys):
    (sound(tmp_path / "all") / "train").rename(tmp_path / "data")
    assert distil().code == 0
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert [len(split[name]) for name in ("validation", "test")] == [8, 8]
    for name in split["test"]:
        (tmp_path / "data" / name).unlink()
    said = distil("--split", "run/split.json", out="again")
    assert said.code == 3
    assert "run/split.json names 8 images that are not there, the first '" in said.err
    # Other images would be training images of the student.
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "run/student.safetensors", "--data", "./data", "--json"])
    assert "split.json names 8 images that are not there" in capsys.readouterr().err
    for name in split["test"]:
        shutil.copy(next((tmp_path / "data" / name).parent.iterdir()), tmp_path / "data" / name)
    cli.main(["evaluate", "run/student.safetensors", "--data", "./data", "--json"])
    assert json.loads(capsys.readouterr().out)["n_acc"] == 8
