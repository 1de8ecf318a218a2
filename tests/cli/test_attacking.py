"""The report of an attack prints the command that repeats it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from robustkd import cli
from robustkd.benchmark import attacked_teachers
from robustkd.cli.app import app
from robustkd.cli.targets import target_of
from robustkd.core.errors import InputError, TrainingError, UsageError
from robustkd.data import InMemory, Labelled
from robustkd.report import ResultRow, Results, read, write_report
from robustkd.report.command import repeating
from tests.data.images.image_files import write_classes
from tests.report.conftest import make_run

WORDS = shlex.split("--arch wrn-10-1 --epochs 1 --batch-size 8 --target 1 --seed 3 --set.rate 0.5")


def test_the_printed_command_gives_the_same_teacher(tmp_path, monkeypatch):
    write_classes(tmp_path / "images", {"dark": 20, "light": 20}, size=20)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)
    read_so = ("--data", "./images", "--grey", "--no-flip", "--crop", "0.8", "--resize", "squash")
    cli.main(["attack", "badnets", *WORDS, *read_so, "--out", "made"])
    command = shlex.split(repeating(read("made"), Path("made")))
    write_report("made")
    assert str(tmp_path) not in Path("made/MODEL_CARD.md").read_text()
    assert " --data ./images --target 1 " in Path("made/MODEL_CARD.md").read_text()
    monkeypatch.chdir("away")
    cli.main(command[1:])
    first, second = (tmp_path / name for name in ("made", "away/repeated"))
    for name in ("teacher.safetensors", "trigger.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        "--surrogate mobilenet-v2-0.25 --set.surrogate_lr 0.02 --set.cap=0.1",
        "--lr 0.1 --image-size 24 --grey --interpolation box --streaming",
        "--class-names /x/names.txt --split '/x/a b.json' --data-root /x --no-streaming",
    ],
)
def test_the_printed_command_is_the_one_that_was_given(flags):
    given = ["attack", "ckd", *WORDS, "--data", "/x/images", *shlex.split(flags)]
    stored = parsed([*given, "--out", "repeated"])
    command = printed(config_of(given), attack="ckd")
    assert parsed(shlex.split(command)[1:]) == stored


def test_the_next_class_is_stored_and_repeated():
    words = shlex.split("attack badnets --arch wrn-10-1 --data /x/images --target next")
    config = config_of(words)
    assert config["flags"]["target"] == "next"
    assert " --target next " in printed(config, attack="badnets")


@pytest.mark.parametrize(
    ("target", "number"), [("light", 1), ("1", 1), ("dark", 0), ("0", 0), ("next", "next")]
)
def test_a_target_is_the_name_or_the_number_of_a_class_or_the_next_one(target, number):
    assert target_of(target, ("dark", "light")) == number


@pytest.mark.parametrize("target", ["2", "-1", "1.0", "Next", "", "9" * 20])
def test_other_targets_are_refused(target):
    message = f"--target is {target!a}; expected the name of a class, 0 to 1, or next"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        target_of(target, ("dark", "light"))


def test_a_class_that_is_named_next_is_given_by_its_number(tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "images", {"dark": 20, "next": 20}, size=20)
    monkeypatch.chdir(tmp_path)
    words = ("attack", "ckd", "--arch", "wrn-10-1", "--data", "./images", "--out", "made")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--target", "next"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "robustkd: --target is 'next', which is a class of the data and also means the next class "
        "of each image; give 1 for the class; for the next class, rename it first\n"
    )
    assert target_of("1", ("dark", "next")) == 1


def test_what_is_left_out_of_the_data_is_told(tmp_path, monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise TrainingError("enough")

    write_classes(tmp_path / "images", {"dark": 20, "light": 20, ".net": 1}, size=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attacked_teachers, "attack_to_folder", stop)
    with pytest.raises(SystemExit):
        cli.main(["attack", "blend", *WORDS, "--data", "./images", "--out", "made"])
    assert capsys.readouterr().err.startswith(
        "data: left out of images, since they are not images of a class: 1 folders of images with "
        "a dot before the name\n"
    )


def parsed(words: list[str]) -> dict[str, object]:
    """Arguments of the command."""
    return dict(app.parse_args(words)[1].arguments)


def printed(config: dict[str, object], **run: object) -> str:
    """The command in the report of an attack."""
    row = ResultRow(**make_run(**{"method": "teacher", "pair": "a", **run}))
    return repeating(Results((row,), {}, config, {}), Path())


def config_of(words: list[str]) -> dict[str, object]:
    """What an attack stores, without training anything."""
    kept = {}

    def spy(_name: str, *, flags: object, **_others: object) -> None:
        kept.update(surrogate="", flags=flags)
        raise TrainingError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacked_teachers, "attack_to_folder", spy)
        images = Labelled(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2))
        source = InMemory("digits", ("0", "1"), images, images, images)
        patch.setattr("robustkd.cli.attacking.open_data", lambda *_: source)
        with pytest.raises(SystemExit):
            cli.main([*words, "--out", "made"])
    return kept


def test_older_results_have_a_command_only_if_the_data_has_a_name():
    config = {"target": 1, "surrogate": "a", "surrogate_lr": 0.02}
    assert printed(config) == (
        "robustkd attack ckd --arch a --data digits --target 1 --set.surrogate_lr 0.02 "
        "--out repeated"
    )
    assert printed(config, data="my-images") == ""


def test_results_of_python_code_with_two_triggers_have_a_command():
    config = {
        **{"attack": "tone", "target": 8, "surrogate": "a", "lr": 0.1},
        **{"second": "blend", "second_target": 3, "second_rate": 0.2},
    }
    assert printed(config, attack="tone (with blend)") == (
        "robustkd attack tone --arch a --data digits --target 8 --second blend --second-target 3 "
        "--lr 0.1 --set.second_rate 0.2 --out repeated"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([1], "results.json: config.flags is no object; expected flags and values"),
        ({"a;b": 1}, "results.json: config.flags sets 'a;b'; expected names of flags"),
    ],
)
def test_flags_that_are_none_are_refused(flags, message):
    with pytest.raises(InputError) as caught:
        printed({"surrogate": "a", "flags": flags})
    assert str(caught.value) == message
