"""The demo from end to end: shortened to seconds, and (slow) as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkd import cli, models, report
from robustkd.attacks import load_trigger
from robustkd.benchmark import PROTOCOLS, Protocol
from robustkd.benchmark import demo as the_demo
from robustkd.core.methods import METHODS, label_of
from robustkd.evaluation.measurement import measure

TINY = Protocol(
    data="digits",
    sizes={"train": 80, "validation": 20, "test": 40},
    augment=True,
    teacher="wrn-10-1",
    student="wrn-10-1",
    attack="ckd",
    target=3,
    attacking={"epochs": 1, "trigger_steps": 2},
    training={"epochs": 1, "batch_size": 40},
    detoxing={"steps": 1},
)
SHOWN = ["teacher", *the_demo.METHODS_SHOWN]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, str, str]:
    """Two seeds of the shrunken demo, run by its command: folder, stdout and stderr."""
    place, out, err = tmp_path_factory.mktemp("runs"), StringIO(), StringIO()
    (place / "demo").mkdir()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(place)
        patch.setitem(PROTOCOLS, "digits", TINY)
        cli.main(["demo", "--seeds", "2"])
    return place / "demo-2", out.getvalue(), err.getvalue()


@pytest.fixture
def demo(told) -> Path:
    return told[0]


def test_the_results_have_every_method_and_seed(demo):
    results = report.read(demo)
    assert [(run.seed, run.method) for run in results.runs] == [
        (seed, method) for seed in (0, 1) for method in SHOWN
    ]
    for run in results.runs:
        assert (run.data, run.pair, run.attack) == ("digits", "wrn-10-1 to wrn-10-1", "ckd")
        assert run.asr is not None
        assert run.ra is not None
        assert run.asr + run.ra <= 1
        assert (run.n_acc, run.n_asr) == (40, 40 - 4)
        assert run.params == 77_562
        assert run.seconds > 0
    assert set(results.records) == {
        "classes",
        *(f"{method}/{seed}" for method in SHOWN for seed in (0, 1)),
    }
    assert results.config == TINY.settings() | {"seeds": 2}
    assert results.environment["torch"] == torch.__version__


def test_seeds_are_aggregated_by_method(demo):
    rows = report.aggregate(report.read(demo).runs)
    assert {row.method: row.acc.n for row in rows} == dict.fromkeys(SHOWN, 2)
    assert {row.asr.n for row in rows} == {2}
    assert "(mean of 2 seeds)" in report.headline(rows)


def test_each_seed_has_its_models_trigger_and_log(demo):
    for seed in (0, 1):
        found = {path.name for path in (demo / f"seed-{seed}").iterdir()}
        assert found == {
            "trigger.safetensors",
            *(f"{method}.safetensors" for method in SHOWN),
            *(f"{method}.metrics.jsonl" for method in the_demo.METHODS_SHOWN),
        }
    teachers = [(demo / f"seed-{seed}" / "teacher.safetensors").read_bytes() for seed in (0, 1)]
    assert teachers[0] != teachers[1]


@pytest.mark.parametrize("method", SHOWN)
def test_saved_models_and_trigger_reproduce_the_figures(demo, method):
    folder = demo / "seed-1"
    trigger, target = load_trigger(folder / "trigger.safetensors")
    assert target == TINY.target
    model = models.load(folder / f"{method}.safetensors")
    again = measure(model, TINY.load(), trigger=trigger, target=target).fields()
    runs = json.loads((demo / "results.json").read_text())["runs"]
    (told,) = (run for run in runs if (run["seed"], run["method"]) == (1, method))
    assert {name: told[name] for name in again} == again


def test_arrays_are_those_of_the_first_seed(demo):
    with np.load(demo / "arrays.npz") as arrays:
        masked = {name.rsplit("/", 1)[0] for name in arrays if name.startswith("mask/")}
        assert masked == {f"mask/{name}" for name in SHOWN[1:] if METHODS[name].detox}
        assert set(arrays) >= {
            "images",
            "labels",
            "triggered",
            "trigger_mask",
            "trigger_pattern",
            *(f"predictions/{method}" for method in SHOWN),
        }
        trigger, target = load_trigger(demo / "seed-0" / "trigger.safetensors")
        images = torch.from_numpy(arrays["images"])
        assert images.shape == (8, 1, 16, 16)
        assert target not in arrays["labels"]
        assert torch.equal(torch.from_numpy(arrays["triggered"]), trigger(images))
        student = models.load(demo / "seed-0" / "ofd.safetensors")
        with torch.inference_mode():
            said = student(trigger(images)).argmax(1)
        assert said.tolist() == arrays["predictions/ofd"].tolist()


def test_the_report_is_next_to_the_results(demo):
    names = sorted(path.name for path in demo.iterdir())
    assert names == [
        *(".lock", "MODEL_CARD.md", "arrays.npz", "report.html", "results.json"),
        *("seed-0", "seed-1", "summary.md"),
    ]
    page = (demo / "report.html").read_text()
    assert all(label_of(method) in page for method in SHOWN)
    assert "no-such-method" not in page


def test_the_command_prints_progress_table_report_and_headline(told):
    folder, out, err = told
    words = [line.split() for line in err.splitlines()]
    expected = [["seed", str(seed), method] for seed in (0, 1) for method in SHOWN]
    assert [line[:3] for line in words] == expected
    assert "Report: demo-2/report.html" in out.splitlines()
    rows = report.aggregate(report.read(folder).runs)
    told = f"{report.headline(rows)} {report.plain_words(rows)}"
    assert " ".join(out.split()).endswith(told)
    assert not list((folder.parent / "demo").iterdir())


@pytest.mark.slow
def test_the_demo_shows_a_backdoor_and_a_student_without_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "robustkd.cli", "demo", "--seeds", "1", "--out", "run"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    rows = {run.method: run for run in report.read(tmp_path / "run").runs}
    assert rows["teacher"].asr >= 0.9
    # All that the ordinary student shows is inherited: without the teacher, the trigger fails.
    assert rows["no-teacher"].asr < 0.03
    assert rows["mix"].asr > 0.9
    assert rows["default"].asr < 0.03
    assert rows["default"].acc >= rows["mix"].acc - 0.02
    assert "the RobustKD student did not." in " ".join(done.stdout.split())
