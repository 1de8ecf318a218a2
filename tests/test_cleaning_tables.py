"""Tables of the comparison of cleanings, and what each of its students learns from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robustkd.core.methods import METHODS
from robustkd.student.terms import TERMS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "cleaning"


@pytest.fixture(scope="module")
def cleaning():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import cleaning

        yield cleaning
    del sys.modules["cleaning"], sys.modules["cleaning_forms"]
    del TERMS["variance"]


def rows(**asr: float) -> list[dict[str, object]]:
    """Return rows with the given ASR, by method, attack and seed."""
    found = []
    for name, value in asr.items():
        method, attack, seed = name.split("_")
        method = {"none": "no-teacher", "long": "paper, long"}.get(method, method)
        row = {"attack": attack, "seed": int(seed), "method": method, "ACC": 0.9, "seconds": 2.0}
        found.append({**row, "ASR": value})
    return found


def test_the_committed_tables_are_those_of_the_committed_rows(cleaning):
    held = cleaning.read(RESULTS / "cleaning.json")
    assert (RESULTS / "cleaning.md").read_text() == cleaning.table(held)
    assert (RESULTS / "shares.md").read_text() == cleaning.shares_table(held)


def test_the_means_of_shares_are_over_the_teachers_of_both_forms(cleaning):
    held = rows(
        **{"none_a_0": 0.1, "ofd_a_0": 0.9, "long_a_0": 0.5, "perturbed_a_0": 0.1},
        **{"none_a_1": 0.0, "ofd_a_1": 1.0, "long_a_1": 1.0, "perturbed_a_1": 0.2},
        # This ordinary student has hardly any excess, and `paper, long` was not run on the last.
        **{"none_b_0": 0.9, "ofd_b_0": 0.99, "long_b_0": 0.9, "perturbed_b_0": 0.99},
        **{"none_b_1": 0.0, "ofd_b_1": 0.5, "perturbed_b_1": 0.75},
    )
    assert cleaning.shares_table(held).splitlines()[2:] == [
        "| paper, long | 25.0 ± 35.4 | - | 25.0 ± 35.4 | 25.0 ± 35.4 | 2 |",
        "| perturbed | 90.0 ± 14.1 | -50.0 | 90.0 ± 14.1 | 25.0 ± 35.4 | 2 |",
    ]


def test_the_costs_of_students_without_an_ordinary_one_are_left_open(cleaning):
    table = cleaning.table(rows(none_a_0=0.25))
    assert table.splitlines()[2:] == ["| no-teacher | 25.0 | - | - | 1 |"]


def test_a_method_that_is_no_form_keeps_its_own_student(cleaning):
    assert cleaning.form_of("no-teacher").student is METHODS["no-teacher"]
    assert cleaning.form_of("ofd").student is METHODS["ofd"]
    assert cleaning.form_of("learned").student is METHODS["learned"]
    with pytest.raises(KeyError):
        cleaning.form_of("a name that is unknown")
