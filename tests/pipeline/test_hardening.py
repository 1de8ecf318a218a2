"""The hardening of a method: what is searched on the teacher, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robustkd import data
from robustkd.core.methods import METHODS
from robustkd.models import builder
from robustkd.pipeline import hardening
from robustkd.pipeline.hardening import make_hardening

CLEAN = data.load("digits", train=60, validation=20)
TEACHER = builder(CLEAN)("wrn-10-1", 0).eval()


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    find = hardening.find_perturbations
    monkeypatch.setattr(
        hardening,
        "find_perturbations",
        lambda *given, **settings: find(*given, **{**settings, "steps": 1}),
    )


def test_the_default_searches_the_teacher_by_its_families():
    made = make_hardening(METHODS["default"], TEACHER, CLEAN, seed=0)
    assert made.fixed.success.shape[1] == len(METHODS["default"].hardening.found)
    assert made.found_share == 0.5
    again = make_hardening(METHODS["default"], TEACHER, CLEAN, seed=0)
    assert made.fixed.success.equal(again.fixed.success)


def test_methods_without_distillation_or_found_families_search_no_teacher():
    alone = replace(METHODS["default"], losses={}, until={})
    assert make_hardening(alone, TEACHER, CLEAN, seed=0).fixed is None
    assert make_hardening(METHODS["learned"], TEACHER, CLEAN, seed=0).fixed is None
    assert make_hardening(METHODS["mix"], TEACHER, CLEAN, seed=0) is None
