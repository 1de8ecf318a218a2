"""The tables in README and docs are what the committed results say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from robustkd.core.errors import InputError, UsageError
from robustkd.report import aggregate, markdown_table, read
from robustkd.report.comparison import ablation_table, attack_table, headline_table, summary_table
from tools.default_table import SETTINGS
from tools.docs_tables import fill_tables

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


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("headline", headline_table),
        ("attacks", attack_table),
        ("summary", summary_table),
        ("ablation", ablation_table),
    ],
)
def test_other_tables_of_a_folder_go_by_their_names(kind, table, page):
    page.write_text(f"<!-- table: some {kind} -->\nold\n<!-- end -->\n")
    assert fill_tables(page, page.parent)
    text = table(aggregate(read(page.parent / "some").runs))
    assert page.read_text() == f"<!-- table: some {kind} -->\n{text}<!-- end -->\n"


def test_the_table_of_the_default_method_has_a_line_for_each_setting(page):
    runs = [
        RUN | {"method": "mix", "acc": 0.9, "asr": 0.8},
        RUN | {"method": "mix", "acc": 0.9, "asr": 0.6, "seed": 1},
        RUN | {"method": "default", "acc": 0.88, "asr": 0.1},
        RUN | {"method": "default", "acc": 0.88, "asr": 0.3, "seed": 1},
    ]
    for folder in SETTINGS:
        (page.parent / folder).mkdir()
        (page.parent / folder / "results.json").write_text(json.dumps({"runs": runs}))
    page.write_text("<!-- table: . default -->\nold\n<!-- end -->\n")
    assert fill_tables(page, page.parent)
    lines = page.read_text().splitlines()[3:-1]
    figures = "wrn-10-2 to wrn-10-1 | 1 | 2 | 70.0 | 20.0 | 30.0 | 2.0 |"
    assert lines == [f"| {data}, {figures}" for data in SETTINGS.values()]


def test_an_unknown_table_is_refused(page):
    page.write_text("<!-- table: some attack -->\n<!-- end -->\n")
    with pytest.raises(
        UsageError, match="table 'attack'; expected one of methods, headline, attacks, s"
    ):
        fill_tables(page, page.parent)


def test_missing_results_are_named(page):
    shutil.rmtree(page.parent / "some")
    with pytest.raises(InputError, match=r"some/results\.json: cannot be read"):
        fill_tables(page, page.parent)


def test_rows_of_a_json_file_are_a_table_as_well(page):
    rows = [{"case": "a|b", "peak_mib": 3}, {"case": "<i>\nx", "peak_mib": None}]
    (page.parent / "rows.json").write_text(json.dumps(rows))
    page.write_text("<!-- table: rows.json -->\n<!-- end -->\n")
    assert fill_tables(page, page.parent)
    table = "| case | peak mib |\n| --- | --- |\n| a\\|b | 3 |\n| \\<i\\> x |  |\n"
    assert page.read_text() == f"<!-- table: rows.json -->\n{table}<!-- end -->\n"


def test_a_markdown_file_is_inserted_unchanged(page):
    page.write_text("<!-- table: made.md -->\nold\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"made\.md: cannot be read"):
        fill_tables(page, page.parent)
    (page.parent / "made.md").write_text("| a |\n| --- |\n")
    assert fill_tables(page, page.parent)
    assert page.read_text() == "<!-- table: made.md -->\n| a |\n| --- |\n<!-- end -->\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1]", '[{"a": 1}, {"b": 1}]'])
def test_rows_that_are_not_tables_are_named(page, content):
    (page.parent / "rows.json").write_text(content)
    page.write_text("<!-- table: rows.json -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"rows\.json: no list of rows with the same keys"):
        fill_tables(page, page.parent)


PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- table: " in page.read_text()
]


def test_the_pages_with_figures_have_tables():
    assert {
        "README.md",
        "docs/guides/data.md",
        "docs/index.md",
        "docs/results/benchmark.md",
        "docs/results/default.md",
        "docs/results/hostile-files.md",
        "docs/results/negative.md",
        "docs/results/networks.md",
    } <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_committed_tables_are_up_to_date(name, tmp_path):
    copy = tmp_path / "page.md"
    shutil.copy(ROOT / name, copy)
    assert not fill_tables(copy, ROOT), "run `make docs`"


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": [{"teacher": "wrn-10-1"}]}'])
def test_damaged_pairs_are_named(content, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: pairs.json pairs -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"pairs\.json: cannot be read: No such file"):
        fill_tables(page, tmp_path)
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(InputError, match=r"pairs\.json: is not what tools\.network_pairs"):
        fill_tables(page, tmp_path)
