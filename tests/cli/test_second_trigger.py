"""`robustkd attack --second`: two triggers with two targets, from the command to the report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from robustkd.attacks import load_trigger
from robustkd.cli.targets import class_of
from robustkd.core.errors import UsageError
from robustkd.report import read
from robustkd.report.command import repeating

WORDS = shlex.split("--arch wrn-10-1 --data digits --target 2 --epochs 1 --set.rate 0.1")
SECOND = shlex.split("--second blend --second-target 5 --set.second_rate 0.2")


def test_both_triggers_are_written_measured_and_reported(robustkd):
    said = robustkd("attack", "badnets", *WORDS, *SECOND, "--out", "made")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[1].endswith(" triggered images of other classes, badnets (with blend)")
    assert lines[2].endswith(" triggered images of other classes, blend (with badnets)")
    assert lines[-1] == "Triggers: made/trigger.safetensors, made/trigger-2.safetensors"
    results = read("made")
    assert [run.attack for run in results.runs] == ["badnets (with blend)", "blend (with badnets)"]
    assert [results.config[name] for name in ("target", "second", "second_target")] == [
        2,
        "blend",
        5,
    ]
    teacher = results.records["teacher"]
    assert [teacher[name]["rate"] for name in ("first", "second")] == [0.1, 0.2]
    for file, target, run in zip(("trigger", "trigger-2"), (2, 5), results.runs, strict=True):
        path = f"made/{file}.safetensors"
        assert load_trigger(path)[1] == target
        found = robustkd("evaluate", "made", "--data", "digits", "--trigger", path, "--json")
        assert {name: getattr(run, name) for name in json.loads(found.out)} == json.loads(found.out)
    said = robustkd("report", "made")
    assert said.code == 0
    assert "Only the teacher was measured, under 2 triggers with attack success rates " in said.out
    assert "badnets (with blend)" in Path("made/report.html").read_text()
    assert repeating(results, Path("made")) == (
        f"robustkd attack badnets {shlex.join(WORDS[:6])} {shlex.join(SECOND[:4])} --epochs 1 "
        "--batch-size 64 --set.rate 0.1 --set.second_rate 0.2 --out repeated"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("badnets --second blend", "--second is given without --second-target; add it, or leave "),
        ("badnets --second-target 5", "--second-target is given without --second; add it, or "),
        (
            "badnets --second blend --second-target 10",
            "--second-target is '10'; expected the name of a class, or 0 to 9",
        ),
        (
            "badnets --second blend --second-target next",
            "--second-target is 'next'; expected the name of a class, or 0 to 9",
        ),
        (
            "badnets --second blend --second-target 2",
            "--target and --second-target are both 2; expected two different classes",
        ),
        (
            "badnets --second sig --second-target 5",
            "--second is 'sig', which cannot be a second trigger; use one of badnets, blend, ",
        ),
        (
            "badnets --second badnets --second-target 5",
            "--second is 'badnets', as the attack itself; expected another one",
        ),
        (
            "adba --second blend --second-target 5",
            "this attack cannot have a second trigger; use one of badnets, blend, ",
        ),
        (
            "badnets --second blend --second-target 5 --set.second_rate 2.0",
            "second: rate is 2.0; expected above 0 and at most 1",
        ),
        (
            "badnets --second tone --second-target 5 --set.second_epochs 3",
            "--set.second_epochs is given, and both triggers share epochs; leave it out",
        ),
        (
            "tone --second flow --second-target 5 --set.second_implant_lr 0.1",
            "--set.second_implant_lr is given, and the fine-tuning has the settings of the first ",
        ),
        (
            "tone --second blend --second-target 5 --set.rate 0.4 --set.second_rate 0.6",
            "second: rate is 0.6, which is 720 images; expected at most the ",
        ),
        ("badnets --set.second blend", "--set.second is 'blend'; use --second instead"),
        (
            "badnets --set.second_target 5",
            "--set.second_target is '5'; use --second-target instead",
        ),
        (
            "badnets --set.second_rate 0.1",
            "--set.second_rate is given and --second is not; add it, or leave both out",
        ),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_training(words, message, robustkd):
    given = [word for word in WORDS if word not in ("--set.rate", "0.1")]
    said = robustkd("attack", *shlex.split(words), *given, "--out", "made")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"robustkd: {message}")
    assert not Path("made").exists()


def test_the_class_of_the_second_trigger_is_given_by_name_or_number():
    classes = ("dark", "next")
    assert [class_of(given, classes) for given in ("dark", "1", "next")] == [0, 1, 1]
    with pytest.raises(UsageError, match=r"^--second-target is '2'; expected the name of a class"):
        class_of("2", classes)


def test_the_list_tells_which_attacks_can_have_a_second_trigger(robustkd):
    attacks = json.loads(robustkd("list", "--json").out)["attacks"]
    assert attacks["tone"].endswith("; also with --target next or --second")
    assert attacks["wanet"].endswith("; also with --target next")
    assert "also with" not in attacks["sig"]
