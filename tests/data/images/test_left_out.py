"""Files that are left out are told by kind and reason, by every command that reads a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustkd import data, models
from robustkd.core.errors import InputError
from robustkd.data.images.left_out import UNREAD, left_out_lines
from robustkd.data.images.scan import EXTENSIONS
from tests.cli.test_folders_of_students import call, write_images

FORMAT = "data: left out of own, since this format is not read: 3 .avif; convert to PNG or JPEG\n"
OTHERS = "data: left out of own, since they are not images of a class: 3 .txt\n"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder of images, of which some have another format, a student and a teacher."""
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate("abc"):
        folder = tmp_path / "own" / name
        write_images(folder, 80 * label + 30, 12, label)
        for other in ("photo.AVIF", "notes.txt"):
            (folder / other).write_bytes(b"any")
    source = data.open_source(str(tmp_path / "own"), reading=data.Reading(channels=1))
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    models.save(model, tmp_path / "student.safetensors")
    torch.save(model.network.state_dict(), tmp_path / "teacher.pt")
    return tmp_path


@pytest.mark.parametrize("command", ["evaluate", "verify"])
@pytest.mark.usefixtures("home")
def test_a_command_on_a_student_says_what_is_left_out(command, capsys):
    more = ("--no-audit",) if command == "verify" else ()
    code, _, err = call(capsys, command, "student.safetensors", "--data", "own", *more)
    assert code == 0
    assert err == FORMAT + OTHERS


@pytest.mark.usefixtures("home")
def test_a_command_on_a_teacher_says_what_is_left_out(capsys):
    words = ("teacher.pt", "--arch", "wrn-10-1", "--data", "own", "--grey")
    code, _, err = call(capsys, "evaluate", *words)
    assert code == 0
    assert FORMAT + OTHERS in err


def test_triggered_images_are_counted_too(home, capsys):
    words = ("student.safetensors", "--data", "own", "--no-audit", "--target", "a")
    _, _, err = call(capsys, "verify", *words, "--triggered", home / "own" / "b")
    assert f"left out of {home / 'own' / 'b'}, since this format is not read: 1 .avif" in err


def test_a_class_without_readable_images_says_what_it_has(home):
    for path in (home / "own" / "b").glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"\); it has 1 \.avif, 1 \.txt; add some, or remove "):
        data.load(str(home / "own"))


def test_the_lines():
    assert left_out_lines("x", {}) == []
    assert left_out_lines("x", {".heic": 1, ".avif": 2, "folders": 1}) == [
        "data: left out of x, since these formats are not read: 2 .avif, 1 .heic; convert to PNG "
        "or JPEG",
        "data: left out of x, since they are not images of a class: 1 folders",
    ]
    assert not set(UNREAD) & set(EXTENSIONS)
