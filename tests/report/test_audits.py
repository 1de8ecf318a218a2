"""Audits in the report and in the last lines of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkd.core.errors import InputError
from robustkd.report import next_step, read, read_records, write_html, write_report
from robustkd.report.audits import FAMILIES, Audits

from .conftest import make_run
from .test_html import HOSTILE, Page

CLASSES = ["cat", HOSTILE, "dog", "cow"]
RUN = Path("a run")
FLAGS = ("--data", "./my images")


def audit(word: str = "no evidence", suspect: int | None = None, **changes: Any) -> dict[str, Any]:
    member = {"strength": 0, "family": "warp", "target": 1, "share": 0.9, "beside": 0.1}
    led = {"p_value": 0.3, "suspect": 1, "said": "warp leads", "counts": True, "member": member}
    return {
        "verdict": {"word": word, "suspect": suspect, "p_value": 0.004, "reason": "near the level"},
        "suspected_class": None if suspect is None else CLASSES[suspect],
        "evidence": {
            "led share": led,
            "last layer": {"p_value": None, "suspect": None, "said": "", "counts": False},
        },
        "pictures": {"before": [0, 2], "after": [1, 1]},
        **changes,
    }


def results(write, arrays=None, method="default", acc=0.976, **audits: Any) -> Path:
    runs = [
        make_run(method=name, asr=None, ra=None, acc=share)
        for name, share in (("teacher", 0.98), (method, acc))
    ]
    records = {"audit": audits, "classes": CLASSES, "teacher_file": {"name": "t.pt"}}
    config = {"method": method, "training": {"epochs": 7}}
    return write(runs, arrays, records=records, config=config)


def read_back(folder: Path) -> Audits:
    return read_records(read(folder), folder / "results.json").audits


def test_an_audit_without_statistics_has_no_empty_table(write):
    told = audit("inconclusive", evidence={}, pictures=None)
    pages = [
        write_html(results(write, teacher=each, student=told)).read_text(encoding="utf-8")
        for each in (told, audit())
    ]
    assert [page.count("All statistics of the teacher") for page in pages] == [0, 1]
    assert not any("All statistics of the student" in page for page in pages)


def test_the_report_has_verdicts_success_and_pictures(write):
    before = np.random.default_rng(0).random((2, 1, 8, 8))
    arrays = {"audit/teacher/before": before, "audit/teacher/after": 1 - before}
    folder = results(write, arrays, teacher=audit("suspicious", 1), student=audit())
    text = write_html(folder).read_text(encoding="utf-8")
    found = Page(text)
    assert f"Audit of the teacher: suspicious; suspected target class: {HOSTILE}" in found.text
    assert "Audit of the student: no evidence of a backdoor. This does not show that" in found.text
    assert "script" not in found.tags
    for shown in ("90.0 %", "10.0 %", "0.004", "the same smooth distortion of every image"):
        assert shown in found.text
    assert found.tags.count("img") == 2 * 3
    assert text.count('<td class="wrong">') == 2
    assert '<p class="lede">' in text
    for path in write_report(folder, folder / "again"):
        assert "suspicious; suspected target class" in path.read_text(encoding="utf-8")
    assert "lede alert" in write_html(results(write, student=audit("suspicious"))).read_text()


@pytest.mark.parametrize(
    ("first", "second", "shown"), [(0.3, 0.001, "light"), (0.001, None, "warp")]
)
def test_the_transformation_is_that_of_the_smallest_p_value(write, first, second, shown):
    """The pictures are of it as well."""
    member = {"strength": 0, "family": "light", "target": 1, "share": 0.4, "beside": 0.1}
    made = audit("suspicious", 1)
    made["evidence"]["led share"]["p_value"] = first
    made["evidence"]["mean share"] = {
        **{"p_value": second, "suspect": 1, "said": "", "counts": True},
        "member": member,
    }
    (found,) = read_back(results(write, student=made)).found
    assert found.led.family == FAMILIES[shown]


@pytest.mark.parametrize(
    ("word", "made", "advice", "command"),
    [
        (
            "suspicious",
            {"method": "kd", "acc": 0.5},
            "do not deploy this student; distil another one with the default method:",
            "robustkd distill --config 'a run/config.yaml' --method default --out another-run",
        ),
        (
            "suspicious",
            {},
            "do not deploy this student; see the pictures in the report, and audit it fully:",
            "robustkd audit 'a run' --data './my images'",
        ),
        (
            "suspicious",
            {"method": "teacher-ft+default"},
            "do not deploy this student; see the pictures in the report, and audit it fully:",
            "robustkd audit 'a run' --data './my images'",
        ),
        (
            "inconclusive",
            {},
            "repeat the audit of the student, more thoroughly:",
            "robustkd audit 'a run' --data './my images'",
        ),
        (
            "inconclusive",
            {"acc": 0.5},
            "much accuracy was lost; train longer, or distil a larger student:",
            "robustkd distill --config 'a run/config.yaml' --epochs 14 --out another-run",
        ),
        (
            "no evidence",
            {},
            "check the student before it is used:",
            "robustkd verify 'a run' --data './my images' --max-drop 0.05",
        ),
    ],
)
def test_the_next_step_is_a_command(word, made, advice, command, write):
    folder = results(write, teacher=audit(), student=audit(word), **made)
    assert after(folder) == (advice, command)


@pytest.mark.parametrize(
    ("verdict", "unclear"),
    [
        ({"p_value": None, "reason": "a new wording", "longer_helps": True}, True),
        ({"p_value": None, "reason": "too few images", "longer_helps": False}, False),
        # Of earlier versions.
        ({"p_value": 0.02, "reason": "near the level"}, True),
        ({"p_value": None, "reason": "the references are led as well"}, True),
        ({"p_value": None, "reason": "too few images"}, False),
    ],
)
def test_a_longer_audit_is_advised_where_it_can_help(verdict, unclear, write):
    student = audit(verdict={"word": "inconclusive", "suspect": None, **verdict})
    found = read_back(results(write, student=student))
    assert (found.unclear, found.useless) == (unclear, not unclear)


def after(folder: Path) -> tuple[str, str]:
    return next_step(read(folder), read_back(folder), RUN, data=FLAGS)


def test_own_code_is_named_again_in_the_next_command(write):
    own = ("--student", "own:net")
    folder = results(write, acc=0.5)
    _, command = next_step(read(folder), Audits(), RUN, data=FLAGS, arch=("--arch", "x"), again=own)
    assert command == (
        "robustkd distill --config 'a run/config.yaml' --student own:net --epochs 14 --out "
        "another-run"
    )


def test_runs_without_an_audit_and_failed_ones(write):
    none = read_back(results(write))
    assert (none.lines, none.student) == ([], "")
    assert after(results(write))[1].startswith("robustkd verify")
    assert "Audit:" not in write_html(results(write)).read_text()
    folder = results(write, failed="MemoryError: <b>")
    failed = read_back(folder)
    assert failed.lines == ["The audit could not be made (MemoryError: <b>)."]
    assert after(folder) == USELESS


USELESS = (
    "the audit says nothing here; check the accuracy before the student is used:",
    "robustkd verify 'a run' --data './my images' --max-drop 0.05 --no-audit",
)


def test_a_longer_audit_is_not_advised_where_it_cannot_help(write):
    told = audit("inconclusive")
    told["verdict"]["p_value"] = None
    folder = results(write, teacher=audit(), student=told)
    assert after(folder) == USELESS
    assert "more thoroughly" not in write_html(folder).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": 3}, "audit.teacher is 3; expected an object"),
        (
            {"teacher": audit("clean")},
            'audit.teacher.verdict.word is "clean"; expected suspicious, no evidence, inconclusive',
        ),
        ({"failed": []}, "audit.failed is []; expected a text"),
        (
            {"student": audit(pictures={"before": [-1]})},
            "audit.student.pictures.before[0] is -1; expected a whole number of at least 0",
        ),
    ],
)
def test_a_damaged_record_is_reported_in_one_line(changes, message, write):
    folder = results(write, **changes)
    line = f"{folder / 'results.json'}: records.{message}"
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        read_back(folder)


def test_pictures_of_different_shapes_are_refused(write):
    arrays = {"audit/x/before": np.zeros((2, 1, 8, 8)), "audit/x/after": np.zeros((3, 1, 8, 8))}
    with pytest.raises(InputError, match=r"audit/x/after has shape \[3, 1, 8, 8\]; expected \[2, "):
        write_html(results(write, arrays, teacher=audit()))
