"""The tables in README and docs are what the committed results say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from robustkd.errors import InputError
from robustkd.report import aggregate, markdown_table, read
from robustkd.report.docs import fill_tables

ROOT = Path(__file__).parents[2]
RUN = {
    "data": "digits",
    "pair": "wrn-10-2 to wrn-10-1",
    "attack": "ckd",
    "method": "ofd",
    "seed": 0,
    "acc": 0.991,
    "asr": 0.5,
    "ra": 0.25,
    "params": 77_562,
    "seconds": 12.0,
}


@pytest.fixture
def page(tmp_path) -> Path:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "results.json").write_text(json.dumps({"runs": [RUN]}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: some -->\nold\n<!-- end -->\nafter\n")
    return page


def test_a_table_is_replaced_and_the_rest_is_kept(page):
    assert fill_tables(page, page.parent)
    table = markdown_table(aggregate(read(page.parent / "some").runs))
    assert page.read_text() == f"before\n<!-- table: some -->\n{table}<!-- end -->\nafter\n"
    assert not fill_tables(page, page.parent)


def test_missing_results_are_named(page):
    shutil.rmtree(page.parent / "some")
    with pytest.raises(InputError, match=r"some/results\.json: cannot be read"):
        fill_tables(page, page.parent)


@pytest.mark.parametrize(
    ("name", "mark"), [("README.md", "<!-- table: "), ("docs/architectures.md", "<!-- pairs: ")]
)
def test_committed_tables_are_up_to_date(name, mark, tmp_path):
    copy = tmp_path / "page.md"
    shutil.copy(ROOT / name, copy)
    assert mark in copy.read_text()
    assert not fill_tables(copy, ROOT), "run `make docs`"


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": [{"teacher": "wrn-10-1"}]}'])
def test_damaged_pairs_are_named(content, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- pairs: pairs.json -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"pairs\.json: cannot be read: No such file"):
        fill_tables(page, tmp_path)
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(InputError, match=r"pairs\.json: is not what robustkd\.benchmark\.pairs"):
        fill_tables(page, tmp_path)
