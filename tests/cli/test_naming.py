"""Messages of checks that the commands share with Python name flags on the command line."""

from __future__ import annotations

import pytest

from robustkd.cli import app, main
from robustkd.cli.naming import in_flags


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("image_size is 0; expected 1", "--image-size is 0; expected 1"),
        ("channels is 1; digits has none", "--grey is given; digits has none"),
        ("channels is 2; expected 3", "--grey is 2; expected 3"),
        ("flip is False; leave it out", "--no-flip is given; leave it out"),
        ("streaming is True; leave it out", "--streaming is given; leave it out"),
        ("streaming is False; leave it out", "--no-streaming is given; leave it out"),
        ("workers is 1; expected 0", "--workers is 1; expected 0"),
        ("root is '.'; leave it out", "--data-root is '.'; leave it out"),
        ("classes is names.txt; leave it out", "--class-names is names.txt; leave it out"),
        ("mean and std belong together; give both", "--mean and --std belong together; give both"),
        ("mean is (1,) and std is (2,); no", "--mean is (1,) and --std is (2,); no"),
        ("compile needs a compiler; install one", "--compile needs a compiler; install one"),
        ("teacher_key is 'a'; choose", "--teacher-key is 'a'; choose"),
        # Not arguments of the command.
        ("mean.pt is no file; crop is 3", "mean.pt is no file; crop is 3"),
        ("pad is 3; expected 2", "pad is 3; expected 2"),
        ("the crop is 3; expected 2", "the crop is 3; expected 2"),
        ("seeds is 3; expected 2", "seeds is 3; expected 2"),
        ("--mean is 3; and std is 2", "--mean is 3; and std is 2"),
        ("crop is 3; of which std is 2", "--crop is 3; of which std is 2"),
        ("interrupted", "interrupted"),
    ],
)
def test_arguments_become_the_flags_of_the_command(message, expected):
    assert in_flags(message, app, ["distill", "teacher.pt"]) == expected


def test_names_with_digits_are_arguments_as_well():
    message = "max_int8_drop is 0.1 and int8 is False; expected one of them"
    told = "--max-int8-drop is 0.1 and --no-int8 is given; expected one of them"
    assert in_flags(message, app, ["export", "student"]) == told


@pytest.mark.parametrize("words", [[], ["--version"], ["no-command", "--crop", "2"]])
def test_without_a_command_there_are_no_flags(words):
    assert in_flags("crop is 2; expected 1", app, words) == "crop is 2; expected 1"


@pytest.mark.parametrize("word", ["--set.trigger-steps", "--set.trigger_steps=0"])
def test_arguments_of_attacks_are_named_as_they_were_typed(word):
    told = in_flags("trigger_steps is 0; expected 1", app, ["attack", "ckd", word])
    assert told == f"{word.partition('=')[0]} is 0; expected 1"


@pytest.mark.parametrize(
    "command",
    [
        ["distill", "t.pt", "--arch", "wrn-10-1", "--student", "wrn-10-1", "--out", "new"],
        ["evaluate", "t.pt", "--arch", "wrn-10-1"],
        ["audit", "t.pt", "--arch", "wrn-10-1"],
        ["attack", "badnets", "--arch", "wrn-10-1", "--out", "new"],
    ],
)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grey"], "--grey is given; digits does not support this option: leave it out"),
        (["--no-flip"], "--no-flip is given; digits does not support this option: leave it out"),
        (["--image-size", "0"], "--image-size is 0; expected 1 to 4096 pixels"),
        (["--crop", "2"], "--crop is 2.0; expected above 0 and at most 1"),
        (["--workers", "-1"], "--workers is -1; expected at least 0"),
    ],
)
def test_every_command_names_what_was_typed(command, flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--data", "digits", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"robustkd: {message}\n"
