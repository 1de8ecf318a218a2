"""The report of an attack prints the command that repeats it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from robustkd import cli
from robustkd.benchmark import attacked_teachers
from robustkd.cli.app import app
from robustkd.core.errors import InputError, TrainingError
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
        patch.setattr("robustkd.cli.commands.open_data", lambda *_: None)
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
