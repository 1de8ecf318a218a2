"""``robustkd attack`` and mistakes in grids."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustkd.attacks import ATTACKS, load_trigger
from robustkd.benchmark import attacked_teachers
from robustkd.core.errors import TrainingError
from tests.cli.commands import refused

pytestmark = pytest.mark.usefixtures("few_digits")


def attacking(name: str = "badnets", **changes: object) -> list[object]:
    options = {
        "arch": "wrn-10-1",
        "data": "digits",
        "out": "made",
        "target": 3,
        "epochs": 1,
    } | changes
    flags = ((f"--{key.replace('_', '-')}", value) for key, value in options.items())
    return ["attack", name, *(part for flag in flags for part in flag)]


def test_attack_writes_a_teacher_and_a_trigger_that_evaluate_confirms(robustkd):
    said = robustkd(*attacking(), "--json")
    assert (said.code, said.err) == (0, "")
    (run,) = json.loads(said.out)["runs"]
    assert json.loads(Path("made/results.json").read_text()) == json.loads(said.out)
    written = sorted(path.name for path in Path("made").iterdir())
    assert written == ["results.json", "teacher.safetensors", "trigger.safetensors"]
    found = json.loads(
        robustkd(
            *("evaluate", "made/teacher.safetensors", "--data", "digits"),
            *("--trigger", "made/trigger.safetensors", "--json"),
        ).out
    )
    assert {name: run[name] for name in found} == found


def test_an_attack_on_the_next_class_is_stored_evaluated_and_reported(robustkd):
    said = robustkd(*attacking(target="next"))
    assert (said.code, said.err) == (0, "")
    words = "of 357 triggered images, classified as the next class of each image"
    assert words in " ".join(said.out.split())
    content = json.loads(Path("made/results.json").read_text())
    assert content["config"]["target"] == content["config"]["flags"]["target"] == "next"
    (run,) = content["runs"]
    assert run["n_asr"] == 357
    assert load_trigger("made/trigger.safetensors")[1] == "next"
    evaluating = ("evaluate", "made/teacher.safetensors", "--data", "digits")
    shown = (*evaluating, "--trigger", "made/trigger.safetensors")
    found = json.loads(robustkd(*shown, "--json").out)
    assert {name: run[name] for name in found} == found
    assert words in " ".join(robustkd(*shown).out.split())
    # One class in place of the target in the file: fewer images count.
    assert json.loads(robustkd(*shown, "--target", 3, "--json").out)["n_asr"] < 357
    refused(
        robustkd(*evaluating, "--target", "next"),
        2,
        "--target is given without --trigger; add it, or leave both out",
    )
    assert robustkd("report", "made").code == 0
    assert "the next class of each image" in Path("made/report.html").read_text()


@pytest.mark.parametrize(
    ("arch", "given", "rates"),
    [
        ("mobilenet-v2-0.25", {"surrogate": "wrn-10-1"}, (0.02, 0.1)),
        ("wrn-10-1", {"surrogate": "mobilenet-v2-0.25"}, (0.1, 0.02)),
        ("mobilenet-v2-0.25", {"lr": 0.3}, (0.3, 0.3)),
    ],
)
def test_an_attacker_trains_each_network_at_its_default_rate_unless_one_is_given(
    robustkd, monkeypatch, arch, given, rates
):
    asked = []

    def spy(*_: object, **how: object) -> None:
        asked.append((how["settings"]["lr"], how["rehearsal"].training["lr"]))
        raise TrainingError("enough")

    monkeypatch.setattr(attacked_teachers, "run_attack", spy)
    assert robustkd(*attacking("adaptive-harden", arch=arch, **given)).code == 1
    assert asked == [rates]
    assert not Path("made").exists()


def test_attack_prints_accuracy_and_success_and_takes_arguments_of_the_attack(robustkd):
    said = robustkd(*attacking("ckd", epochs=1), "--set.cap", "0.1", "--set.trigger_steps", "2")
    assert said.code == 0
    lines = said.out.splitlines()
    assert re.fullmatch(r"ACC  \d+\.\d%  of 357 test images", lines[0])
    assert re.fullmatch(r"ASR  \d+\.\d%  of \d+ triggered images of other classes", lines[1])
    assert lines[2] == "Teacher: made/teacher.safetensors"
    record = json.loads(Path("made/results.json").read_text())
    assert (record["config"]["cap"], record["records"]["teacher"]["cap"]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bednets", {}, "unknown attack 'bednets'; did you mean 'badnets'?"),
        ("badnets", {"arch": "wrn-11-1"}, None),
        (
            "badnets",
            {"target": 10},
            "--target is '10'; expected the name of a class, 0 to 9, or next",
        ),
        (
            "ckd",
            {"target": "next"},
            "--target is next, and attack 'ckd' has one target class; give its number, or use one "
            f"of {', '.join(name for name, row in ATTACKS.items() if row.next_class)}",
        ),
        (
            "badnets",
            {"arch": "torchvision/alexnet"},
            "'torchvision/alexnet' cannot be run on the images of digits, of shape (1, 16, 16): "
            "Given input size: (192x1x1). Calculated output size: (192x0x0). Output size is too "
            "small",
        ),
        ("badnets", {"set.colour": 3}, "attack 'badnets' has no argument 'colour'"),
        ("badnets", {"set.seed": 3}, "attack 'badnets' has no argument 'seed'"),
        ("badnets", {"set.epochs": 3}, "--set.epochs is '3'; use --epochs instead"),
        ("badnets", {"set.batch_size": 3}, "--set.batch-size is '3'; use --batch-size instead"),
        ("badnets", {"set.lr": 0.1}, "--set.lr is '0.1'; use --lr instead"),
        ("flow", {"set.family": "tone"}, "attack 'flow' has no argument 'family'"),
        ("badnets", {"epochs": 0}, "--epochs is 0; expected at least 1"),
    ],
)
def test_a_mistake_in_attack_is_reported_in_one_line(name, changes, message, robustkd):
    said = robustkd(*attacking(name, **changes))
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    if message is not None:
        assert said.err == f"robustkd: {message}\n"
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("text", "flags", "code", "message"),
    [
        ("a: [", [], 3, "grid.yaml cannot be read as YAML: while parsing"),
        ("seeds: 3", [], 2, "grid.yaml: data is missing; expected data sets with"),
        ("seeds: 3", ["--workers", "0"], 2, "--workers is 0; expected at least 1"),
        (
            "seeds: 3",
            ["--workers", "2", "--executor", "ray"],
            2,
            "--workers is given with --executor ray, which uses the whole cluster; leave it out",
        ),
        *(
            (
                "seeds: 3",
                ["--tables-only", *flag],
                2,
                f"{flag[0]} is given with --tables-only, which runs no cell; leave one of them out",
            )
            for flag in (["--workers", "1"], ["--executor", "local"], ["--cache", "c"])
        ),
    ],
)
def test_a_mistake_in_a_grid_is_reported_in_one_line(text, flags, code, message, robustkd):
    Path("grid.yaml").write_text(text)
    said = robustkd("bench", "grid.yaml", *flags)
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"robustkd: {message}")
    assert said.err.count("\n") == 1
