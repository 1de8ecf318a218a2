"""The tables of a grid: which attacks count, and averages over those alone."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from robustkd.core.methods import METHODS
from robustkd.report import ResultRow, aggregate, grid_files, summaries
from robustkd.report.comparison import (
    GRID_FILES,
    PARTS,
    ablation_table,
    attack_table,
    csv_table,
    headline_table,
    summary_table,
)
from robustkd.report.summaries import verdict
from robustkd.report.tables import UNKNOWN

from .conftest import make_run

# attack: ASR of the clean student, OFD, KD, default (two seeds), additions-kd
GRID = {
    "ckd": (0.10, 0.80, 0.60, (0.02, 0.06), 0.03),
    "adba": (0.65, 0.80, 0.20, (0.04, 0.04), 0.01),
    "badnets": (0.01, 0.02, 0.03, (0.50, 0.50), 0.40),
}


def rows():
    found = []
    for attack, (clean, ofd, kd, default, additions_kd) in GRID.items():
        for seed in (0, 1):
            asr = {
                "no-teacher": clean,
                "ofd": ofd,
                "kd": kd,
                "default": default[seed],
                "additions-kd": additions_kd,
            }
            acc = {"ofd": 0.90, "kd": 0.88, "default": 0.89, "additions-kd": 0.885}
            found += [
                make_run(
                    attack=attack,
                    method=name,
                    seed=seed,
                    asr=share,
                    acc=acc.get(name, 0.9),
                    base=0.007,
                )
                for name, share in asr.items()
            ]
    return aggregate(ResultRow(**run) for run in found)


def test_only_attacks_that_the_ordinary_student_of_the_same_losses_inherits_are_averaged():
    default, additions_kd = summaries(rows())
    # adba misleads the clean student in 65 % of the images, so that 80 % show no inheritance.
    assert (default.method, default.settings) == ("default", 1)
    assert default.asr == pytest.approx(0.04)
    assert default.ordinary_asr == pytest.approx(0.8)
    assert default.worst == 0.06
    assert default.lost == pytest.approx(0.01)  # beside OFD, which is the more accurate one
    assert (additions_kd.method, additions_kd.settings) == ("additions-kd", 1)
    assert additions_kd.asr == pytest.approx(0.03)
    assert additions_kd.lost == pytest.approx(-0.005)


def test_a_method_of_both_losses_counts_where_either_ordinary_student_inherits():
    shares = {"ofd": (0.88, 0.1), "kd": (0.90, 0.7), "default": (0.89, 0.02), "paper": (0.9, 0.0)}
    found = aggregate(
        ResultRow(**make_run(method=method, acc=acc, asr=asr))
        for method, (acc, asr) in shares.items()
    )
    (only,) = summaries(found)
    assert (only.method, only.settings, only.ordinary_asr) == ("default", 1, 0.7)
    assert only.lost == pytest.approx(0.01)


def test_the_summary_in_percent():
    assert summary_table(rows()).splitlines()[2:] == [
        "| RobustKD (default) | 1 | 80.0 | 4.0 | 6.0 | 1.0 | 87.5 |",
        "| RobustKD (additions KD) | 1 | 60.0 | 3.0 | 3.0 | -0.5 | 78.5 |",
    ]


def test_a_method_is_compared_over_the_seeds_and_attacks_that_its_ordinary_student_has():
    """A grid may have failed cells: here seed 1 of OFD under ckd, and the default under adba."""
    shares = {
        ("ckd", "ofd", 0): (0.90, 0.8),
        ("ckd", "default", 0): (0.88, 0.02),
        ("ckd", "default", 1): (0.60, 0.30),
        ("adba", "ofd", 0): (0.90, 0.9),
        ("scar", "ofd", 0): (0.90, 0.9),
        ("scar", "default", 1): (0.90, 0.0),
    }
    found = aggregate(
        ResultRow(**make_run(attack=attack, method=method, seed=seed, acc=acc, asr=asr))
        for (attack, method, seed), (acc, asr) in shares.items()
    )
    (only,) = summaries(found)
    assert (only.settings, only.counting, only.asr, only.worst) == (1, 3, 0.02, 0.30)
    assert only.lost == pytest.approx(0.02)
    assert summary_table(found).splitlines()[2:] == [
        "| RobustKD (default) | 1 of 3 | 80.0 | 2.0 | 30.0 | 2.0 | 88.0 |",
    ]


@pytest.mark.parametrize("method", ["kd", "default"])
def test_a_summary_without_lines_says_why(method):
    """The default was measured with another seed, and KD is no defence."""
    found = aggregate(
        ResultRow(**make_run(method=name, seed=seed, acc=0.9, asr=0.8))
        for seed, name in enumerate(("ofd", method))
    )
    assert summary_table(found) == (
        "No method can be compared: no defence was measured, with a seed that its ordinary "
        "students have as well, under an attack that one of them inherits.\n"
    )


def test_pairs_are_summed_up_apart_and_then_together():
    shares = {"ofd": (0.9, 0.8), "default": (0.88, 0.02)}
    found = aggregate(
        ResultRow(
            **make_run(pair=pair, method=method, acc=acc - k / 10 * (method == "default"), asr=asr)
        )
        for k, pair in enumerate(("a to b", "c to d"))
        for method, (acc, asr) in shares.items()
    )
    head, _, *lines = summary_table(found).splitlines()
    assert head.startswith("| Pair | Method | Attacks |")
    assert lines == [
        "| a to b | RobustKD (default) | 1 | 80.0 | 2.0 | 2.0 | 2.0 | 88.0 |",
        "| c to d | RobustKD (default) | 1 | 80.0 | 2.0 | 2.0 | 12.0 | 83.0 |",
        "| all | RobustKD (default) | 2 | 80.0 | 2.0 | 2.0 | 7.0 | 85.5 |",
    ]


def test_attacks_of_all_pairs_weigh_the_same_and_data_sets_stay_apart():
    costs = {("x", "a to b", "ckd"): 1, ("x", "a to b", "adba"): 2, ("y", "a to b", "ckd"): 9}
    costs |= {("x", "c to d", "ckd"): 6, ("x", "c to d", "badnets"): 50}
    found = summaries(
        aggregate(
            ResultRow(
                **make_run(
                    data=data,
                    pair=pair,
                    attack=attack,
                    method=method,
                    acc=0.9 - points / 100 * (method == "default"),
                    asr=0.01 if method == "default" or attack == "badnets" else 0.8,
                )
            )
            for (data, pair, attack), points in costs.items()
            for method in ("ofd", "default")
        )
    )
    assert [(one.data, one.pair, one.settings, round(100 * one.lost, 6)) for one in found] == [
        ("x", "a to b", 2, 1.5),
        ("x", "c to d", 1, 6),
        ("x", "all", 3, 3),
        ("y", "a to b", 1, 9),
    ]


@pytest.mark.parametrize(
    ("attack", "word"),
    [("ckd", "survives"), ("adba", "fools clean students"), ("badnets", "control")],
)
def test_every_attack_gets_its_verdict(attack, word):
    assert verdict([row for row in rows() if row.attack == attack]) == word


def test_an_ordinary_student_with_weights_of_its_own_counts_as_any_other():
    shares = {"teacher": 1.0, "no-teacher": 0.1, "at-0.5+kd-1": 0.8, "teacher-clp+at-0.5+kd-1": 0.7}
    found = aggregate(ResultRow(**make_run(method=name, asr=asr)) for name, asr in shares.items())
    assert verdict(found) == "survives"
    assert "(at-0.5+kd-1)" in headline_table(found)
    assert [one.ordinary_asr for one in summaries(found)] == [0.8]


@pytest.mark.parametrize(("acc", "useful"), [(0.81, True), (0.79, False)])
def test_an_inaccurate_teacher_proves_nothing(acc, useful):
    shares = {"teacher": 1.0, "no-teacher": 0.1, "ofd": 0.8, "kd": 0.8, "default": 0.02}
    found = aggregate(
        ResultRow(**make_run(method=name, asr=asr, acc=acc if name == "teacher" else 0.9))
        for name, asr in shares.items()
    )
    assert verdict(found) == ("survives" if useful else "useless teacher")
    assert len(summaries(found)) == useful


def test_an_attack_is_a_line_of_acc_and_asr():
    head, _, *lines = attack_table(rows()).splitlines()
    assert head.startswith("| Attack | Base | student, no teacher | ordinary student (OFD) |")
    assert lines[0] == (
        "| ckd | 0.7 | 90.0 / 10.0 ± 0.0 | 90.0 / 80.0 ± 0.0 | 88.0 / 60.0 ± 0.0 | "
        "89.0 / 4.0 ± 2.8 | 88.5 / 3.0 ± 0.0 | 2 | survives |"
    )


def lines_of(pair: str, attack: str, **methods: tuple[int, float | None]) -> list[ResultRow]:
    """Runs of one setting: of each method so many seeds, all with the same ASR."""
    return [
        ResultRow(**make_run(pair=pair, attack=attack, method=name, seed=seed, asr=asr, acc=0.9))
        for name, (seeds, asr) in methods.items()
        for seed in range(seeds)
    ]


def test_the_headline_has_the_attacks_that_count_and_the_student_with_the_highest_asr():
    found = aggregate(
        lines_of("a to b", "ckd", ofd=(2, 0.1), kd=(2, 0.5), default=(1, 0.02), both=(4, 0.0))
        + lines_of("a to b", "badnets", ofd=(2, 0.1), kd=(2, 0.2), default=(2, 0.02))
        + lines_of("a to b", "sig", mix=(2, 0.6), paper=(3, 0.4), ofd=(1, None), teacher=(5, 1.0))
    )
    table = (
        "| Attack | student, no teacher | ordinary student with the highest ASR | "
        "RobustKD (paper) | RobustKD (default) | n |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| ckd | ? | 90.0 / 50.0 ± 0.0 (kd) | ? | 90.0 / 2.0 | 1-2 |\n"
        "| sig | ? | 90.0 / 60.0 ± 0.0 (mix) | 90.0 / 40.0 ± 0.0 | ? | 2-3 |\n"
    )
    assert headline_table(found).replace(UNKNOWN, "?") == table
    other = lines_of("c to d", "ckd", ofd=(1, 0.2), default=(1, 0.1))
    assert headline_table(found + aggregate(other)).replace(UNKNOWN, "?") == table


def test_the_headline_names_pairs_where_there_are_several():
    found = [run for pair in ("a to b", "c to d") for run in lines_of(pair, "ckd", ofd=(1, 0.5))]
    assert headline_table(aggregate(found)).splitlines()[2:] == [
        f"| {pair} | ckd | {UNKNOWN} | 90.0 / 50.0 (ofd) | 1 |" for pair in ("a to b", "c to d")
    ]


def test_the_files_of_a_grid_have_their_names():
    rows = aggregate(lines_of("a to b", "badnets", ofd=(1, 0.1), default=(1, 0.0)))
    assert tuple(grid_files(rows)) == GRID_FILES


def test_a_headline_without_results_states_so():
    found = lines_of("a to b", "badnets", ofd=(1, 0.1), default=(1, 0.0))
    found += lines_of(
        "a to b", "sig", **{"teacher": (1, 1.0), "no-teacher": (1, 0.1)}, ofd=(1, 0.9)
    )
    useless = [replace(run, acc=0.5) if run.method == "teacher" else run for run in found]
    told = (
        "No attack counts: with none of them, an ordinary student has an ASR of at least 30 % and "
        "20 points more than a student without a teacher.\n"
    )
    for table in (headline_table, summary_table):
        assert table(aggregate(useless)) == told
        assert table(aggregate(found)) != told


def test_the_ablation_has_the_attacks_that_are_inherited_and_whole():
    asr = {
        "ckd": {"ofd": 0.8, "paper": 0.4, "mix": 0.7, "additions": 0.02, "both": 0.01},
        "latent": {"ofd": 0.1, "paper": 0.0, "mix": 0.5, "additions": 0.04, "both": 0.03},
        "badnets": {
            "ofd": 0.1,
            "paper": 0.1,
            "mix": 0.2,
            "additions": 0.0,
            "both": 0.0,
        },  # a control
        "adba": {"ofd": 0.8, "paper": 0.4, "mix": 0.7, "additions": 0.02},  # not finished
    }
    found = aggregate(
        ResultRow(**make_run(attack=attack, method=method, asr=share, acc=0.9))
        for attack, shares in asr.items()
        for method, share in shares.items()
    )
    head, _, *lines = ablation_table(found).splitlines()
    assert head == "| Attack | OFD | OFD, detoxified | mix | mix, hardened | mix, both | n |"
    assert lines == [
        "| ckd | 90.0 / 80.0 | 90.0 / 40.0 | 90.0 / 70.0 | 90.0 / 2.0 | 90.0 / 1.0 | 1 |",
        "| latent | 90.0 / 10.0 | 90.0 / 0.0 | 90.0 / 50.0 | 90.0 / 4.0 | 90.0 / 3.0 | 1 |",
        "| mean | 90.0 / 45.0 | 90.0 / 20.0 | 90.0 / 60.0 | 90.0 / 3.0 | 90.0 / 2.0 |  |",
    ]


def test_an_ablation_without_a_line_says_why():
    measured = dict.fromkeys(PARTS.values(), (1, 0.5))
    del measured["both"]
    assert ablation_table(aggregate(lines_of("a to b", "ckd", **measured))) == (
        "No attack that an ordinary student inherits was measured with all of the methods "
        "ofd, paper, mix, additions, both.\n"
    )


def test_the_ablations_means_stand_beneath_its_columns_when_pairs_are_named():
    found = [
        run
        for pair in ("a to b", "c to d")
        for run in lines_of(pair, "ckd", **dict.fromkeys(PARTS.values(), (1, 0.5)))
    ]
    *_, line, mean = ablation_table(aggregate(found)).splitlines()
    assert line == f"| c to d | ckd |{' 90.0 / 50.0 |' * 5} 1 |"
    assert mean == f"|  | mean |{' 90.0 / 50.0 |' * 5}  |"


def test_seeds_are_counted_from_the_fewest_to_the_most():
    seeds = {"ofd": 2, "paper": 10, "mix": 2, "additions": 3, "both": 2}
    found = aggregate(
        ResultRow(**make_run(method=method, seed=seed, asr=0.5))
        for method, count in seeds.items()
        for seed in range(count)
    )
    assert ablation_table(found).splitlines()[2].endswith("| 2-10 |")
    assert "| 2-10 | " in attack_table(found)


def test_pairs_are_named_where_there_are_several():
    two = aggregate(ResultRow(**make_run(pair=pair)) for pair in ("a to b", "c to d"))
    assert attack_table(two).splitlines()[0].startswith("| Pair | Attack |")


def test_the_csv_holds_every_figure_as_a_fraction():
    lines = list(csv.DictReader(io.StringIO(csv_table(rows()))))
    assert len(lines) == 15
    line = next(line for line in lines if (line["attack"], line["method"]) == ("ckd", "default"))
    assert float(line["asr_mean"]) == pytest.approx(0.04)
    assert float(line["asr_highest"]) == pytest.approx(0.06)
    assert line["n"] == "2"


def test_all_files_are_the_same_every_time_and_the_figure_is_an_svg():
    files = grid_files(rows())
    assert files == grid_files(rows())
    assert set(files) == {
        "headline.md",
        "attacks.md",
        "summary.md",
        "ablation.md",
        "table.csv",
        "acc-asr.svg",
    }
    root = ET.fromstring(files["acc-asr.svg"])  # noqa: S314 (our own)
    assert root.tag.endswith("svg")
    assert "RobustKD (default)" in files["acc-asr.svg"]


def test_the_figure_shows_every_method_however_many_there_are():
    methods = ["teacher", *METHODS, "nad", "anp", "fine-pruning"]
    found = aggregate(ResultRow(**make_run(method=method, acc=0.9, asr=0.5)) for method in methods)
    shown = grid_files(found)["acc-asr.svg"]
    for row in found:
        assert (row.words in shown) == (row.method != "teacher")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\u00a0=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name):
    rows = aggregate([ResultRow(**make_run(data=name, method="ofd"))])
    (_, line) = csv.reader(io.StringIO(csv_table(rows)))
    assert line[0] == f"'{name}"
