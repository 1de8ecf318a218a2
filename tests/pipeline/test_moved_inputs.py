"""Teacher and images may be moved between the start of a run and its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd import data, models
from robustkd.core.errors import InputError
from robustkd.data.images.content import content_sha256
from robustkd.pipeline.run_checks import (
    as_recorded,
    check_same,
    check_same_images,
    facts_of_images,
    named_as_before,
)
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.cli.test_folders_of_students import call, write_images

READING = data.Reading(channels=1, flip=False)


def opened(folder: Path) -> data.Pictures:
    return data.open_source(str(folder), reading=READING)


@pytest.fixture
def images(tmp_path) -> Path:
    for label, name in enumerate("ab"):
        write_images(tmp_path / "own" / name, 60 + 120 * label, 20, label)
    return tmp_path / "own"


def test_the_hash_is_that_of_names_classes_and_bytes_alone(images, tmp_path):
    before = opened(images).content()
    assert before == opened(images.rename(tmp_path / "moved")).content()
    file = tmp_path / "moved" / "a" / "03.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert opened(tmp_path / "moved").content() != before
    file.write_bytes(content)
    assert opened(tmp_path / "moved").content() == before
    renamed = file.rename(file.with_name("03a.png"))
    assert opened(tmp_path / "moved").content() != before
    renamed.rename(file)
    file.unlink()
    assert opened(tmp_path / "moved").content() != before


def test_labels_and_splits_are_part_of_the_hash(images):
    source = opened(images)
    parts = source.parts
    swapped = {"train": parts["train"], "validation": parts["test"], "test": parts["validation"]}
    assert content_sha256(swapped) != content_sha256(parts)
    before = source.content()
    parts["train"].files.labels[:] = 1 - parts["train"].files.labels
    assert content_sha256(parts) != before


def test_a_file_that_cannot_be_read_counts_as_such(images):
    source = opened(images)
    (images / "a" / "03.png").unlink()
    assert source.content() != opened(images).content()


def test_arrays_have_no_content_to_move(few_digits):
    source = data.load("digits", train=40)
    assert named_as_before(Path("nowhere"), source) is source


def test_a_source_takes_the_name_of_the_run_only_with_its_content(images, tmp_path):
    source = opened(images)
    run = tmp_path / "run"
    run.mkdir()
    moved = source.renamed("moved")
    for content, name in ((source.content(), "own"), ("0" * 64, "moved"), (None, "moved")):
        (run / "run.json").write_text(json.dumps({"data": {"name": "own", "content": content}}))
        assert named_as_before(run, moved).name == name
    (run / "run.json").write_text(json.dumps({"data": {"name": ["own"], "content": None}}))
    assert named_as_before(run, moved) is moved


def test_a_run_of_an_older_version_is_compared_without_the_hash(tmp_path):
    old, now = {"name": "own"}, {"name": "own", "content": "1"}
    (tmp_path / "run.json").write_text(json.dumps({"data": old}))
    assert as_recorded(tmp_path, {"data": now}) == {"data": old}
    (tmp_path / "run.json").write_text(json.dumps({"data": {"content": "2", "name": "own"}}))
    assert as_recorded(tmp_path, {"data": now}) == {"data": now}
    with pytest.raises(InputError, match="was started with data content '2', now it is '1'; use"):
        check_same(tmp_path, {"data": now})


class Killed(BaseException):
    """The end of the process, before the training."""


def kill(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def begin(images, tmp_path, capsys, monkeypatch) -> tuple[str, ...]:
    """The command that starts a run, without its last word; ``run`` is killed before it trains."""
    monkeypatch.chdir(tmp_path)
    source = opened(images)
    teacher = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(teacher), source, epochs=6, batch_size=16, lr=0.05)
    models.save(teacher, Path("teacher.safetensors"))
    words = ("distill", "teacher.safetensors", "--arch", "wrn-10-1", "--data", "own", "--grey")
    more = ("--no-flip", "--no-audit", "--student", "wrn-10-1", "--method", "kd", "--epochs", "2")
    with monkeypatch.context() as patched:
        patched.setattr("robustkd.pipeline.run.make_student", kill)
        with pytest.raises(Killed):
            call(capsys, *words, *more, "--out", "run")
    return (*words, *more, "--out")


def exchange(images: Path) -> None:
    """Give both classes the images of the other, so that the teacher is always wrong."""
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (images / old).rename(images / new)


def damage(images: Path) -> None:
    for path in (images / "a").iterdir():
        path.write_bytes(path.read_bytes()[:40])


def add_class(images: Path) -> None:
    write_images(images / "c", 30, 20, 7)


def remove_some(images: Path) -> None:
    for path in sorted((images / "a").iterdir())[:5]:
        path.unlink()


@pytest.mark.parametrize(
    ("change", "what"),
    [(exchange, "content"), (damage, "content"), (add_class, "classes"), (remove_some, "sizes")],
)
def test_changed_images_are_named_before_what_follows_from_them(
    change, what, images, begin, capsys
):
    change(images)
    code, out, err = call(capsys, "distill", "--resume", "run")
    assert (code, out) == (3, "")
    assert err.startswith(f"robustkd: run was started with data {what} ")
    assert err.endswith("; use the same, or start a new run with --out\n")
    assert len(err.splitlines()) == 1


def test_images_are_compared_with_what_a_run_has_recorded(images, tmp_path):
    source = opened(images)
    check_same_images(tmp_path / "none", source)
    facts = facts_of_images(source)
    run = tmp_path / "run.json"
    for known in ({}, facts, {**facts, "split": "0", "name": "x"}):
        run.write_text(json.dumps({"data": known}))
        check_same_images(tmp_path, source)
    for name in facts:
        run.write_text(json.dumps({"data": {**facts, name: "another"}}))
        with pytest.raises(InputError, match=f"with data {name} 'another', now it is .*; use the"):
            check_same_images(tmp_path, source)


def test_a_run_goes_on_with_moved_teacher_and_images(images, begin, capsys):
    assert call(capsys, *begin, "whole")[0] == 0
    Path("own").rename("moved")
    code, _, err = call(capsys, "distill", "--resume", "run")
    assert code == 3
    assert err.strip() == (
        f"robustkd: {images} is not a folder any more; give the new place of the images with --data"
    )
    Path("teacher.safetensors").rename("other.safetensors")
    code, _, err = call(capsys, "distill", "--resume", "run", "--data", "moved")
    assert "give the new place of the teacher before --resume" in err
    resumed = ("distill", "other.safetensors", "--resume", "run", "--data", "moved")
    path = Path("moved", "a", "00.png")
    path.write_bytes(path.read_bytes() + b"\0")
    code, _, err = call(capsys, *resumed)
    assert code == 3
    assert "was started with data content " in err
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = call(capsys, *resumed)
    assert code == 0, err
    student = "student.safetensors"
    assert Path("run", student).read_bytes() == Path("whole", student).read_bytes()
