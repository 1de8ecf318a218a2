from __future__ import annotations

import pytest

from robustkd.core.methods import METHODS
from robustkd.report import ResultRow, aggregate, by_cell

from .conftest import make_run

KNOWN = ["teacher", *METHODS]


def runs(*changes):
    return [ResultRow(**make_run(**change)) for change in changes]


def test_mean_and_sample_deviation_by_hand():
    (row,) = aggregate(
        runs({"seed": 0, "acc": 0.9}, {"seed": 1, "acc": 0.8}, {"seed": 2, "acc": 0.7})
    )
    assert row.acc.mean == pytest.approx(0.8)
    assert row.acc.sd == pytest.approx(0.1)
    assert (row.acc.n, row.acc.lowest, row.acc.highest) == (3, 0.7, 0.9)
    assert row.acc.interval is None


def test_a_single_seed_has_no_deviation_but_an_interval_where_images_were_counted():
    (row,) = aggregate(runs({"asr": 0.5, "n_asr": 100}))
    assert row.asr.sd is None
    assert row.asr.interval == pytest.approx((0.4038315, 0.5961685))
    assert row.acc.interval is None


def test_seeds_without_an_asr_are_left_out_of_it():
    (row,) = aggregate(runs({"seed": 0, "asr": None}, {"seed": 1, "asr": 0.25}))
    assert (row.asr.mean, row.asr.n, row.acc.n) == (0.25, 1, 2)
    (row,) = aggregate(runs({"asr": None, "ra": None, "n_asr": 0}))
    assert row.asr is None
    assert row.ra is None


def test_methods_come_in_display_order_and_settings_in_their_own():
    methods = ["zz", "default", "aa", *(name for name in reversed(KNOWN) if name != "default")]
    rows = aggregate(
        runs(*({"attack": attack, "method": m} for attack in ("scar", "ckd") for m in methods))
    )
    assert [row.method for row in rows[: len(methods)]] == [*KNOWN, "aa", "zz"]
    assert [cell.attack for cell in by_cell(rows)] == ["scar", "ckd"]


def test_a_method_without_a_label_keeps_its_name():
    (row,) = aggregate(runs({"method": "nad"}))
    assert row.words == "nad"
    assert not row.ours
