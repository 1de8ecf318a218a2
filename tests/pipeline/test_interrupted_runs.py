"""An interrupted run continues where it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from robustkd import data, models, report
from robustkd.core.errors import InputError
from robustkd.core.methods import METHODS
from robustkd.pipeline import run as main_line
from robustkd.pipeline import run_files, run_folder
from robustkd.pipeline import student as making
from robustkd.pipeline.prepare import identity
from tests.marks import slow
from tests.pipeline.runs import CLEAN, FILES, build, run, stopped_after


def interrupted(teacher_file: Path, out: Path, wants: int, **changes) -> str:
    """What a run says that is interrupted when the loop asks for the ``wants``-th time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.Run, "is_due", stopped_after(wants))
        with pytest.raises(KeyboardInterrupt) as stop:
            run(teacher_file, out, **changes)
    return str(stop.value)


@pytest.mark.slow
def test_detoxification_is_not_repeated(finished, teacher_file, tmp_path, monkeypatch):
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    monkeypatch.setitem(METHODS, "both", brief)
    out, again = tmp_path / "run", {"method": "both", "seed": 5}
    said = interrupted(teacher_file, out, 2, **again)
    assert said == f"interrupted; resume with: robustkd distill --resume {out}"
    with monkeypatch.context() as patch:
        patch.setattr(making, "detoxify", lambda *_, **__: pytest.fail("was repeated"))
        results = run(teacher_file, out, **again, resume=True)
    whole, expected = finished
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert results["records"]["detox"] == json.loads(json.dumps(expected["records"]["detox"]))
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.slow
def test_a_kill_within_detoxification_restarts_it(finished, teacher_file, tmp_path, monkeypatch):
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    monkeypatch.setitem(METHODS, "both", brief)
    out, again = tmp_path / "run", {"method": "both", "seed": 5}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "detoxify", killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out, **again)
    run(teacher_file, out, **again, resume=True)
    student = (out / "student.safetensors").read_bytes()
    assert student == (finished[0] / "student.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("module", "name"),
    [(models, "save"), slow(main_line.Results, "write"), slow(report, "write_report")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_a_kill_after_the_training_costs_no_training(
    module, name, teacher_file, tmp_path, monkeypatch
):
    run(teacher_file, tmp_path / "whole")
    out = tmp_path / "run"
    real, calls = getattr(module, name), []

    def killed(path, *arguments, **settings):
        # Files that are written when the run begins are not meant.
        if (out / run_files.CHECKPOINT).exists():
            raise KeyboardInterrupt
        return real(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out)
    monkeypatch.setattr(run_folder, "_KEEP_EVERY", 0.0)
    monkeypatch.setattr(run_folder.Run, "save", lambda *_: calls.append("kept"))
    results = run(teacher_file, out, resume=True)
    assert not calls
    assert (out / "student.safetensors").read_bytes() == (
        tmp_path / "whole" / "student.safetensors"
    ).read_bytes()
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.slow
def test_the_training_is_saved_at_intervals(teacher_file, tmp_path, monkeypatch):
    """States are stored at an interval of some seconds within an epoch, and after each epoch."""
    steps = []
    real = run_folder.Run.save

    def watched(found, state):
        steps.append((state.values["epoch"], state.values["taken"]))
        real(found, state)

    monkeypatch.setattr(run_folder.Run, "save", watched)
    run(teacher_file, tmp_path / "seldom", training={"epochs": 2, "batch_size": 64})
    assert steps == [(1, 0), (2, 0)]
    steps.clear()
    monkeypatch.setattr(run_folder, "_KEEP_EVERY", 0.0)
    run(teacher_file, tmp_path / "often", training={"epochs": 1, "batch_size": 64})
    assert steps == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_other_data_is_refused(teacher_file, tmp_path):
    interrupted(teacher_file, tmp_path, 1)
    other = data.load("digits", train=210, validation=60, test=50)
    message = (
        f"{tmp_path} was started with data sizes {{'train': 200, 'validation': 60, 'test': 50}}, "
        "now it is {'train': 210, 'validation': 60, 'test': 50}; use the same, or start a new "
        "run with --out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(teacher_file, tmp_path, clean=other, resume=True)


def test_the_same_images_mirrored_or_not_are_other_data():
    """Otherwise, resuming with ``--no-flip`` would give a student that nobody can reproduce."""
    spec = build(0).spec
    again = data.load("digits", train=200, validation=60, test=50)
    assert identity(again, spec) == identity(CLEAN, spec)
    mirrored = replace(again, augmentation=replace(again.augmentation, flip=True))
    assert identity(mirrored, spec) != identity(CLEAN, spec)
