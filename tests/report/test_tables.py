from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustkd.core.methods import METHODS
from robustkd.report import ResultRow, aggregate, console_table, markdown_table
from robustkd.report.tables import UNKNOWN, markdown, short_count

from .conftest import SCORES, make_run


def rendered(rows, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(rows))
    return console.export_text()


def widest_rows(seeds):
    """Every share at its widest."""
    widest = {"acc": 1.0, "asr": 1.0, "ra": 1.0, "params": 36_479_219, "n_asr": 100}
    return aggregate(
        ResultRow(**make_run(method=method, seed=seed, **widest))
        for i, method in enumerate(["teacher", *METHODS])
        for seed in range(seeds[i])
    )


COUNT = 1 + len(METHODS)


@pytest.mark.parametrize(
    "seeds", [(1,) * COUNT, (3,) * COUNT, tuple(1 + k % 9 for k in range(COUNT))]
)
def test_eighty_columns_hold_every_cell_on_one_line(seeds):
    rows = widest_rows(seeds)
    lines = rendered(rows).splitlines()
    for row in rows:
        line = next(line for line in lines if line.startswith(row.words))
        assert line.count("100.0") >= 3
        assert "36.5 M" in line
        assert line.rstrip().endswith("31")
    assert "…" not in "".join(lines)
    assert len([line for line in lines if line.strip()]) == len(rows) + 4


def test_several_seeds_show_mean_deviation_and_their_number():
    rows = aggregate(
        ResultRow(**make_run(seed=seed, acc=acc)) for seed, acc in enumerate((0.9, 0.8))
    )
    text = rendered(rows)
    assert "85.0 ± 7.1" in text
    assert "mean ± standard deviation over n = 2 seeds" in text


def test_names_are_never_markup_and_unknown_numbers_are_a_dash():
    unknown = {"asr": None, "ra": None, "seconds": 0.0}
    text = rendered(aggregate([ResultRow(**make_run(method="[red]x[/]", **unknown))]))
    assert "[red]x[/]" in text
    assert text.count(UNKNOWN) == 3


def test_brackets_are_explained_where_there_are_any():
    told = "in brackets the 95 % interval"
    for n_asr, there in ((100, True), (None, False)):
        text = rendered(aggregate([ResultRow(**make_run(n_asr=n_asr))]))
        assert ("[" in text, told in text) == (there, there)
    assert told not in rendered(aggregate([ResultRow(**make_run(asr=None, n_asr=100, n_acc=100))]))


def test_several_settings_are_told_apart_by_what_differs():
    attacks = ("ckd", "scar")
    text = rendered(aggregate(ResultRow(**make_run(attack=attack)) for attack in attacks))
    assert text.splitlines()[0].strip() == "digits · wrn10-2-wrn10-1"
    assert [line.strip() for line in text.splitlines() if line.strip() in attacks] == [
        "ckd",
        "scar",
    ]


def test_no_rows_make_an_empty_table():
    assert "no runs" in rendered([])
    assert markdown_table([]).count("\n") == 2


def test_markdown_gives_back_the_numbers():
    rows = aggregate(
        ResultRow(**make_run(method=method, attack=attack, acc=acc, asr=asr))
        for attack in ("ckd", "scar")
        for method, (acc, asr) in SCORES.items()
    )
    head, _, *lines = markdown_table(rows).splitlines()
    names = [name.strip() for name in head.strip("|").split("|")]
    assert names == ["Attack", "Method", "ACC %", "ASR %", "RA %", "n", "Parameters", "Seconds"]
    for line, row in zip(lines, rows, strict=True):
        found = dict(zip(names, (c.strip() for c in line.strip("|").split("|")), strict=True))
        assert (found["Attack"], found["Method"]) == (row.attack, row.words)
        assert float(found["ACC %"]) == pytest.approx(100 * row.acc.mean, abs=0.05)
        assert float(found["ASR %"]) == pytest.approx(100 * row.asr.mean, abs=0.05)
        assert int(found["Parameters"].replace(",", "")) == row.params
        assert (found["n"], found["Seconds"]) == ("1", "31")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("![x](http://a.b/c.png)", "![x]&#40;http&#58;//a.b/c.png)"),
        ("[x](javascript:y)", "[x]&#40;javascript:y)"),
        ("www.a.b", "www&#46;a.b"),
        ("a\\|b", "a&#92;\\|b"),
        ("50.0 [40.4, 59.6]", "50.0 [40.4, 59.6]"),
        ("*b* `c` ~d~ $x$", "&#42;b&#42; &#96;c&#96; &#126;d&#126; &#36;x&#36;"),
        ("__d__ a_b @me", "&#95;&#95;d&#95;&#95; a_b &#64;me"),
    ],
)
def test_a_cell_holds_no_markup_link_or_image(name, written):
    assert markdown(name) == written


def test_a_hostile_name_stays_in_its_markdown_cell():
    table = markdown_table(aggregate([ResultRow(**make_run(method="a|b<script>"))]))
    assert "| a\\|b&lt;script&gt; |" in table


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (99_960, "100 k"), (36_479_219, "36.5 M")],
)
def test_counts_fit_in_six_characters(count, text):
    assert short_count(count) == text
