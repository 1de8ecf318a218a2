"""``robustkd distill`` as a user runs it, and what its student is good for."""

from __future__ import annotations

import json
import shlex
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml

from robustkd import data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import Proportion
from tests.cli.commands import FACT, distilling, refused, shell
from tests.data.images.image_files import write_classes

pytestmark = pytest.mark.usefixtures("few_digits")


def test_distill_as_a_process_then_evaluate(robustkd, files, tmp_path):
    out = tmp_path / "a[/b] :cat:"
    said = shell(*distilling(files.teacher, out=out), cwd=tmp_path)
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    student = out / "student.safetensors"
    assert f"\nStudent: {student}\nReport: {student.with_name('report.html')}\n" in said.out
    told = " ".join(said.out.split())
    assert "Large drop of accuracy: the ordinary student has " in told
    assert "The attack success rate could not be measured, as no trigger is known. Next: " in told
    config = shlex.quote(str(out / "config.yaml"))
    longer = f"robustkd distill --config {config} --epochs 2 --out another-run"
    assert said.out.splitlines()[-1] == f"  {longer}"
    assert "Audit" not in said.out
    assert yaml.safe_load((out / "config.yaml").read_text())["audit"] is False
    assert "--no-audit" in (out / "MODEL_CARD.md").read_text()
    said = robustkd("evaluate", student, "--data", "digits", "--json")
    assert (said.code, said.err) == (0, "")
    figures = json.loads(said.out)
    assert figures["n_acc"] == 357
    assert (figures["asr"], figures["ra"], figures["n_asr"]) == (None, None, None)
    rows = json.loads((out / "results.json").read_text())["runs"]
    assert figures["acc"] == rows[1]["acc"]


def test_distill_from_a_plain_checkpoint(robustkd, files, tmp_path):
    """As another project saved it: halved, wrapped, and without a word on normalisation."""
    state = models.load(files.teacher).half().network.state_dict()
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 4, "state_dict": state}, tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", method="no-teacher")
    said = robustkd(*command, "--mean", 0.5, "--std", 0.5, "--json")
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    facts = json.loads(said.out)["records"]["teacher_file"]
    assert (facts["wrappers"], facts["ignored"]) == (["state_dict", "module."], ["'epoch'"])
    assert (facts["normalisation"], facts["matched"]) == ("given by the user", len(state))
    page = Path("run/report.html").read_text()
    assert "<h2>Teacher file</h2>" in page
    assert facts["sha256"] in page


def test_distill_prints_the_results_as_json(robustkd, files):
    said = robustkd(*distilling(files.teacher, method="no-teacher"), "--json")
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    assert json.loads(said.out) == json.loads(Path("run/results.json").read_text())


def test_evaluate_counts_under_a_trigger(robustkd, files):
    command = ("evaluate", files.teacher, "--data", "digits", "--trigger", files.trigger)
    said = robustkd(*command, "--json")
    found = json.loads(said.out)
    others = 357 - data.load("digits").test.labels.tolist().count(0)
    assert found["n_asr"] == others
    asr, ra = (Proportion(round(found[key] * others), others) for key in ("asr", "ra"))
    acc = Proportion(round(found["acc"] * 357), 357)
    assert robustkd(*command).out.splitlines() == [
        f"ACC  {acc}  of 357 test images",
        f"ASR  {asr}  of {others} triggered images of other classes",
        f"RA   {ra}",
    ]
    assert robustkd(*command[:4]).out.splitlines() == [
        f"ACC  {acc}  of 357 test images",
        "ASR  not measured: no trigger was given",
    ]


def test_own_code_is_named_on_the_command_line(robustkd, files, tmp_path):
    own = "tools.network_pairs:example_network"
    said = robustkd("list", "--taps", own, "--image", "1", "16", "16", "--json")
    assert json.loads(said.out)[own]["parameters"] == "24,170"
    model = models.build(models.Spec(models.OwnCode(own), 10, (1, 16, 16)), seed=0)
    models.save(model, tmp_path / "m")
    said = robustkd("evaluate", tmp_path / "m", "--data", "digits", "--arch", own, "--json")
    assert said.code == 0
    refused(
        robustkd("evaluate", tmp_path / "m", "--data", "digits"),
        3,
        f"{tmp_path / 'm'} says that its architecture is {own!r}, which is code; if it is your "
        "own, name it with --arch, or as models.OwnCode in Python",
    )


def test_a_run_needs_a_new_folder(robustkd, files):
    command = distilling(files.teacher)
    where = command.index("--out")
    refused(
        robustkd(*command[:where], *command[where + 2 :]),
        2,
        "--out is missing; give a new folder for the run",
    )
    refused(
        robustkd("distill", "--resume", "none"),
        3,
        "none is not the folder of a run: it has no config.yaml",
    )


def test_a_dry_run_prints_the_plan_and_makes_no_folder(robustkd, files):
    command = *distilling(files.teacher, method="default", epochs=3), "--dry-run"
    plan = json.loads(robustkd(*command, "--json").out)
    assert plan["distil"]["steps"] == 3 * 5
    assert plan["teacher"]["sha256"] == sha256(files.teacher.read_bytes()).hexdigest()
    words = robustkd(*command).out.split()
    assert {"distil", "estimate", "validate", "15", "MiB"} <= set(words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_used_folder_is_refused_before_anything_is_read(robustkd, flags):
    Path("run").mkdir()
    Path("run/old").touch()
    refused(
        robustkd(*distilling(Path("no.safetensors")), *flags),
        2,
        "output folder run is not empty; give a new one with --out",
    )


def test_control_characters_in_names_are_escaped(robustkd, files):
    hostile = "\x1b]0;:cat:[b]\n.pt"
    Path(hostile).write_bytes(files.teacher.read_bytes())
    said = robustkd(*distilling(hostile), "--dry-run")
    assert said.code == 0
    assert "  name            \\x1b]0;:cat:[b]\\n.pt " in said.out
    refused(
        robustkd(*distilling("\x1b[2J\n")),
        3,
        "\\x1b[2J\\n cannot be read: No such file or directory; expected a safetensors file or a "
        "torch checkpoint",
    )


def test_outputs_of_a_teacher_are_chosen_by_the_list_of_classes(robustkd, files, tmp_path):
    folder = write_classes(tmp_path / "pictures", {"high": 20, "low": 20}, size=16)
    whole = models.build(models.Spec("wrn-10-1", 5, (3, 16, 16)), seed=0)
    fit(Supervised(whole), data.load(folder), epochs=6, batch_size=8)
    torch.save(whole.network.state_dict(), tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", data=folder, method="kd")
    mean = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    refused(
        robustkd(*command, *mean),
        3,
        f"{tmp_path / 'teacher.pt'} is a model of 5 classes; the data has 2: use the data that it "
        "was trained for, or name its outputs with --class-names",
    )
    (tmp_path / "names.txt").write_text("high\nlow\nother\nnone\nany\n")
    said = robustkd(*command, *mean, "--class-names", tmp_path / "names.txt", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["records"]["teacher_file"]["outputs"] == [0, 1]
    assert models.load(tmp_path / "run" / "student.safetensors").spec.class_names == ("high", "low")


@pytest.mark.slow
def test_the_better_weights_are_used_unless_the_key_is_given(robustkd, files, tmp_path):
    good = models.load(files.teacher).network.state_dict()
    # Two classes are never the answer.
    never = torch.tensor([1e3, 1e3, *[0.0] * 8])
    worse = {name: value - never if name == "head.bias" else value for name, value in good.items()}
    torch.save({"state_dict": worse, "state_dict_ema": good}, tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", method="no-teacher")
    plain = ("--mean", 0.5, "--std", 0.5)
    said = robustkd(*command, *plain, "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)["records"]["teacher_file"]
    assert told["key"] == "state_dict_ema"
    assert len(told["candidates"]) == 2
    assert "; chosen: 'state_dict_ema' of 'state_dict' (accuracy " in said.err
    command = distilling(tmp_path / "teacher.pt", method="no-teacher", out="again")
    said = robustkd(*command, *plain, "--teacher-key", "state_dict", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["records"]["teacher_file"]["key"] == "state_dict"
    assert "teacher_key: state_dict\n" in Path("again/config.yaml").read_text()
    refused(
        robustkd(*distilling(tmp_path / "teacher.pt", out="third"), "--teacher-key", "model"),
        2,
        f"--teacher-key is 'model'; {tmp_path / 'teacher.pt'} has 'state_dict', 'state_dict_ema': "
        "give one of these, or leave it out",
    )
