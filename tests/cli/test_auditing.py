"""``robustkd audit`` and ``robustkd verify`` as a user runs them."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustkd import cli, data
from robustkd.attacks import BadNets, save_trigger
from robustkd.cli.auditing import print_audit
from robustkd.core import files
from robustkd.core.errors import WriteError
from robustkd.evaluation import verification
from robustkd.evaluation.audit import LEVEL, Audit, Effort, Evidence, Verdict, run
from robustkd.training.metrics import Proportion
from tests.digits_network import write_network

pytestmark = pytest.mark.usefixtures("few_digits")
TINY = Effort(strengths=(0.5,), steps=4, batch=4, held_out=8, references=0, margins=1)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("student") / "student.safetensors")


@pytest.fixture
def robustkd(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(run, "FULL", TINY)
    monkeypatch.setattr(run, "QUICK", TINY)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            cli.main([*map(str, arguments), "--data", "digits"])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def verdict(monkeypatch):
    """The verdict of every audit in this test."""

    def says(word: str, suspect: int | None = None) -> None:
        monkeypatch.setattr(
            run, "combine", lambda *_, **__: Verdict(word, suspect, 0.01, "the reason")
        )

    return says


def test_a_suspicious_model_has_exit_code_4(robustkd, student, verdict, tmp_path):
    verdict("suspicious", 3)
    flags = ("--out", "found.json", "--pictures", "found.png")
    code, out, err = robustkd("audit", student, *flags)
    assert code == 4
    assert err == (
        "robustkd: there is evidence of a backdoor towards class '3'; see what was found above\n"
    )
    assert "Verdict: suspicious; suspected target class: 3\nNext: do not deploy this" in out
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads((tmp_path / "found.json").read_text())["suspected_class"] == "3"
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.size == (6 * 96 + 5 * 4, 3 * 96 + 2 * 4)
    code, _, err = robustkd("audit", student, *flags)
    assert (code, err) == (
        2,
        "robustkd: --out is found.json, which exists; expected a new file\n",
    )


def test_no_evidence_is_not_called_clean(robustkd, student, verdict):
    verdict("no evidence")
    code, out, err = robustkd("audit", student, "--quick")
    assert (code, err) == (0, "")
    assert "Verdict: no evidence of a backdoor. This does not show that there is none." in out
    assert max(map(len, out.splitlines())) <= 80


def test_unwritable_files_are_refused_before_the_audit(robustkd, student, tmp_path):
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for words, says in (
        (
            ("audit", "--out", "no/x.json"),
            "--out is no/x.json, but no is not a folder; make it first",
        ),
        (("audit", "--pictures", "nowhere"), "--pictures is nowhere, which exists; expected a new"),
        (("audit", "--out", "x", "--pictures", "./x"), "--out and --pictures are both x; expected"),
        (
            ("verify", "--out", "no/x.json"),
            "--out is no/x.json, but no is not a folder; make it first",
        ),
        (("verify", "--out", "nowhere"), "--out is nowhere, which exists; expected a new file"),
        (("audit", "--seed", 10**30), f"--seed is {10**30}; expected at most"),
        (("audit", "--seed", -1), "--seed is -1; expected at least 0"),
    ):
        command, *flags = words
        code, out, err = robustkd(command, student, *flags)
        assert (code, out) == (2, ""), words
        assert err.startswith(f"robustkd: {says}"), err
        assert err.count("\n") == 1


def test_the_verdict_is_printed_even_if_the_disk_is_full(robustkd, student, verdict, monkeypatch):
    def full(*_: object) -> None:
        raise WriteError("found.json: the disk is full; make room")

    monkeypatch.setattr(files, "write_json", full)
    for word, expected in (("suspicious", 4), ("no evidence", 3)):
        verdict(word)
        code, out, err = robustkd("audit", student, "--out", "found.json")
        assert code == expected
        assert f"Verdict: {word}" in out
        assert "the disk is full" in err


def test_the_level_is_a_fraction(robustkd, student):
    assert inspect.signature(cli.app["audit"].default_command).parameters["level"].default == LEVEL
    code, _, err = robustkd("audit", student, "--level", 5)
    assert code == 2
    assert err == "robustkd: --level is 5.0; expected above 0 and below 1\n"


@pytest.mark.parametrize(
    ("word", "flags", "expected"),
    [
        ("no evidence", (), 0),
        ("no evidence", ("--min-accuracy", 1.0), 5),
        ("inconclusive", (), 6),
        ("suspicious", ("--min-accuracy", 1.0), 4),
    ],
)
def test_exit_codes_of_verify(word, flags, expected, robustkd, student, monkeypatch):
    names = tuple(map(str, range(10)))
    verdict = Verdict(word, 3 if word == "suspicious" else None, 0.01, "the reason")
    told = Audit(verdict, {}, names, Proportion(9, 10), (), quick=True, seconds=1.0)
    monkeypatch.setattr(verification, "audit", lambda *_, **__: told)
    code, out, err = robustkd("verify", student, *flags)
    assert code == expected
    assert (err == "") == (expected == 0)
    assert out.startswith("ACC    ")
    assert "ASR    not measured: no trigger was given\n" in out
    assert "robustkd distill" not in out


def test_the_asterisk_is_explained_only_where_there_is_one(capsys):
    verdict = Verdict("inconclusive", None, None, "the reason")
    names = ("a", "b")
    bare = Audit(verdict, {}, names, Proportion(9, 10), (), quick=True, seconds=1.0)
    with_one = replace(bare, evidence={"last layer": Evidence(0.5, None, "")})
    for found, shown in ((bare, False), (with_one, True), (replace(bare, probe=with_one), True)):
        print_audit(found)
        assert ("* not part of the verdict" in capsys.readouterr().out) is shown


def test_verify_says_what_the_audit_found(robustkd, student, monkeypatch):
    verdict = Verdict("suspicious", 3, 0.01, "led share")
    evidence = {
        "mean share": Evidence(0.02, 3, "all families: 40% move to this class"),
        "led share": Evidence(0.005, 3, "tone: 90% move to this class"),
        "last layer": Evidence(0.001, 3, "the mean weight is the largest"),
    }
    names = tuple(map(str, range(10)))
    told = Audit(verdict, evidence, names, Proportion(9, 10), (), quick=True, seconds=1.0)
    monkeypatch.setattr(verification, "audit", lambda *_, **__: told)
    code, out, _ = robustkd("verify", student)
    assert code == 4
    assert "\nFound: tone: 90% move to this class\nVerdict: suspicious" in out
    assert "all families" not in out


def test_verify_measures_a_trigger_and_a_folder_of_images(robustkd, student, tmp_path):
    save_trigger(BadNets(size=3), 0, tmp_path / "trigger")
    code, out, _ = robustkd("verify", student, "--no-audit", "--trigger", "trigger", "--json")
    by_trigger = json.loads(out)["asr"]
    assert code == 0
    (batch,) = data.load("digits").batches("test", batch_size=1000)
    shown = BadNets(size=3)(batch.images)
    for row, (image, label) in enumerate(zip(shown, batch.labels.tolist(), strict=True)):
        (tmp_path / "triggered" / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = image[0].mul(255).round().byte().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "triggered" / str(label) / f"{row}.png")
    words = ("verify", student, "--no-audit", "--triggered", "triggered", "--target", 0)
    code, out, _ = robustkd(*words, "--json")
    assert (code, json.loads(out)["asr"]) == (0, by_trigger)
    code, _, err = robustkd(*words[:-2])
    assert code == 2
    assert err == "robustkd: --triggered is given without --target; add it\n"
    code, _, err = robustkd(*words[:-1], "ten")
    assert code == 2
    assert err == "robustkd: --target is 'ten'; expected the name of a class, 0 to 9, or next\n"
    # The file of the trigger has the target 0, which --target replaces.
    words = ("verify", student, "--no-audit", "--json", "--target", "next")
    code, out, _ = robustkd(*words, "--trigger", "trigger")
    by_trigger = json.loads(out)["asr"]
    assert (code, by_trigger["n"]) == (0, len(batch.labels))
    code, out, _ = robustkd(*words, "--triggered", "triggered")
    assert (code, json.loads(out)["asr"]) == (0, by_trigger)
    code, _, err = robustkd(*words)
    message = "--target is given without --trigger or --triggered; add one of them"
    assert (code, err) == (2, f"robustkd: {message}\n")
    image = next((tmp_path / "triggered" / "3").iterdir())
    image.rename(tmp_path / "triggered" / "loose.png")
    code, _, err = robustkd(*words, "--triggered", "triggered")
    assert code == 3
    assert "has an image 'loose.png' that is in no folder of a class; the next class" in err


def test_verify_identifies_the_student_and_the_data(robustkd, student, tmp_path):
    code, out, _ = robustkd("verify", student, "--no-audit", "--json")
    found = json.loads(out)
    digest = hashlib.sha256(Path(student).read_bytes()).hexdigest()
    assert (code, found["data"]) == (0, "digits")
    assert found["student"] == {"path": str(student), "sha256": digest}


def test_a_trigger_is_no_student(robustkd, tmp_path):
    save_trigger(BadNets(size=3), 0, tmp_path / "trigger.safetensors")
    code, _, err = robustkd("evaluate", "trigger.safetensors")
    assert code == 3
    assert "trigger.safetensors is a trigger, which robustkd attack wrote; give a model's" in err


def test_the_drop_is_relative_to_the_teacher(robustkd, student):
    words = ("verify", student, "--no-audit", "--max-drop", 0.01)
    code, _, err = robustkd(*words)
    assert code == 2
    assert "--max-drop is given, but the teacher's accuracy is unknown" in err
    code, out, _ = robustkd(*words, "--teacher", student)
    assert code == 0
    assert "DROP   0.0 points [" in out
    assert out.endswith("Next: robustkd export writes the files for a device.\n")
