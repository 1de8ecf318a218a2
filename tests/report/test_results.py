from __future__ import annotations

import json
import math

import pytest

from robustkd.core.errors import InputError
from robustkd.report import read

from .conftest import make_run


def test_written_results_are_read_and_unknown_keys_are_ignored(write):
    results = read(write([make_run(note="extra", n_acc=540)], records={"x": [1]}))
    (run,) = results.runs
    assert (run.method, run.acc, run.n_acc, run.n_asr) == ("ofd", 0.976, 540, None)
    assert results.environment == {"torch": "2.10"}
    assert results.records == {"x": [1]}


def test_asr_and_ra_may_be_null(write):
    (run,) = read(write([make_run(asr=None, ra=None)])).runs
    assert run.asr is None
    assert run.ra is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acc": 97.6}, "runs[0].acc is 97.6; expected a fraction in [0, 1]"),
        ({"acc": None}, "runs[0].acc is null; expected a fraction in [0, 1]"),
        ({"acc": math.nan}, "runs[0].acc is NaN; expected a fraction in [0, 1]"),
        ({"acc": True}, "runs[0].acc is true; expected a fraction in [0, 1]"),
        ({"asr": "0.1"}, 'runs[0].asr is "0.1"; expected a fraction in [0, 1], or null'),
        ({"ra": -0.1}, "runs[0].ra is -0.1; expected a fraction in [0, 1], or null"),
        ({"seed": 1.5}, "runs[0].seed is 1.5; expected a whole number of at least 0"),
        ({"params": -1}, "runs[0].params is -1; expected a whole number of at least 0"),
        (
            {"seconds": math.inf},
            "runs[0].seconds is Infinity; expected a number of at least 0 seconds",
        ),
        ({"n_asr": 2.5}, "runs[0].n_asr is 2.5; expected a whole number of at least 0, or null"),
        ({"method": ""}, 'runs[0].method is ""; expected a printable name'),
        ({"attack": "a\x1b[2J"}, r'runs[0].attack is "a\u001b[2J"; expected a printable name'),
        (
            {"data": "x" * 121},
            f'runs[0].data is "{"x" * 56}...; expected at most 120 characters',
        ),
    ],
)
def test_a_wrong_value_is_named(write, changes, message):
    folder = write([make_run(**changes)])
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(caught.value) == f"{folder}/results.json: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the file is []; expected a JSON object"),
        ({}, "runs is null; expected a list of at least one run"),
        ({"runs": []}, "runs is []; expected a list of at least one run"),
        ({"runs": [3]}, "runs[0] is 3; expected an object"),
        ({"runs": [{}]}, "runs[0] has no 'data'; every run needs it"),
        ({"runs": [make_run()], "config": 3}, "config is 3; expected an object"),
        (
            {"runs": [make_run()], "environment": {"a\n": [1]}},
            r'environment["a\n"] is [1]; expected text or a number',
        ),
        (
            {"runs": [make_run(), make_run()]},
            "runs[1] repeats runs[0] ('ofd' with seed 0); expected each seed once, since repeated "
            "seeds understate the standard deviation",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path}/results.json: {message}"


@pytest.mark.parametrize("text", ["%s", '{"runs": 1, "config": %s}', '{"records": {"a": %s}}'])
def test_values_that_are_nested_too_deep_are_refused(tmp_path, text):
    for inner in ("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900):
        (tmp_path / "results.json").write_text(text % inner)
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}/results.json: nested deeper than 64 levels; repeat the run"
        )


def test_the_attacks_of_a_model_are_optional_and_checked(write):
    known = read(write([make_run(attacks=["tone (with blend)", "blend (with tone)"])]))
    assert known.runs[0].attacks == ("tone (with blend)", "blend (with tone)")
    assert read(write([make_run()])).runs[0].attacks is None
    for wrong in ("tone", ["a\n"], [3]):
        with pytest.raises(InputError, match=r"runs\[0\]\.attacks is .*; expected a list of"):
            read(write([make_run(attacks=wrong)]))


def test_a_missing_key_is_named(write):
    run = make_run()
    del run["asr"]
    with pytest.raises(InputError, match=r"runs\[0\] has no 'asr'; every run needs it$"):
        read(write([run]))


def test_a_missing_file_and_one_that_is_not_json(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        read(tmp_path)
    (tmp_path / "results.json").write_text('{"runs": [')
    with pytest.raises(InputError, match=r"results.json: not a JSON file \(Expecting value"):
        read(tmp_path)
    (tmp_path / "results.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"results.json: not a JSON file"):
        read(tmp_path)
