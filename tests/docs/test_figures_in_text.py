"""Figures in the sentences of a page follow from the code or from committed results."""

from __future__ import annotations

import json
import math
import re
from statistics import fmean

from robustkd.evaluation.audit.evidence import Evidence
from robustkd.evaluation.audit.led_share import binomial_p_value, highest
from robustkd.evaluation.audit.registry import COUNTED
from robustkd.evaluation.audit.verdict import combine
from robustkd.export import run
from robustkd.report import ResultRow, aggregate
from robustkd.report.results import read
from robustkd.report.summaries import inherited
from tests.docs.pages import ROOT


def _text(page: str) -> str:
    return " ".join((ROOT / "docs" / page).read_text().split())


def _is_evidence(moved: int, tested: int, led: float) -> bool:
    p_value = binomial_p_value(moved, tested, highest(led, tested))
    others = {name: Evidence(1.0, None, "") for name in COUNTED}
    return combine({**others, "led share": Evidence(p_value, 0, "")}, COUNTED).word == "suspicious"


def test_the_guide_to_the_audit_has_the_shares_that_count_as_evidence():
    text = _text("guides/audit.md")
    led = float(re.search(r"led in (\d+) % of the images", text)[1]) / 100
    examples = re.findall(r"(\d+) % of (\d+)", text.partition("must move at least ")[2])[:2]
    assert len(examples) == 2
    for share, tested in examples:
        n = int(tested)
        fewest = next(k for k in range(n + 1) if _is_evidence(k, n, led))
        assert round(100 * fewest / n) == int(share)


def _audited(data: str) -> list[dict]:
    """Return the rows of the calibration without a probe student."""
    path = ROOT / "benchmarks" / "results" / "audit" / f"{data}.json"
    return [row for row in json.loads(path.read_text())["rows"] if not row["probe"]]


def test_the_calibration_tells_how_many_networks_neuron_noise_accuses():
    known = [(row, row["full"]["p_values"]["neuron noise"]) for row in _audited("digits")]
    known = [(row, p_value) for row, p_value in known if p_value is not None]
    clean = [(row, p_value) for row, p_value in known if row["attack"] == "clean"]
    of_all, of_clean = (sum(p_value <= 0.01 for _, p_value in rows) for rows in (known, clean))
    text = _text("results/audit.md")
    assert f"it accuses {of_all} of the {len(known)} networks with BatchNorm that were" in text
    assert f"also {of_clean} of the {len(clean)} without a backdoor" in text


def test_the_calibration_tells_how_many_images_count():
    usual = [row["full"] for row in _audited("digits") if not row.get("brief")]
    counts = [audit["led share"]["images"] for audit in usual]
    counts += [audit["mean share"]["mean"]["images"] for audit in usual]
    words = f"{min(counts):.0f} to {max(counts):.0f} for networks that were trained as usual"
    assert words in _text("results/audit.md")


def test_the_glossary_tells_when_no_student_counts_as_inheriting():
    text = _text("glossary.md")
    teacher, clean = (_row(name, acc) for name, acc in (("teacher", 0.79), ("no-teacher", 0.9)))
    heir = _row("mix", 0.79)
    assert not inherited(aggregate([teacher, clean, heir]), ["mix"])
    assert inherited(aggregate([_row("teacher", 0.81), clean, heir]), ["mix"])
    assert "useless teacher, which is more than 10 points less accurate than a clean" in text


def _row(method: str, acc: float) -> ResultRow:
    asr = 0.0 if method == "no-teacher" else 1.0
    return ResultRow("digits", "a to b", "tone", method, 0, acc, asr, 0.0, 1, 1.0)


def test_the_guide_to_the_export_names_the_measured_forms():
    """Those of `export.json`, with and without int8."""
    text = _text("guides/export.md")
    for kind in ("torch", *run.FILES):
        listed = f"`{kind}`" in text.partition("`measured` in `export.json` has")[2][:200]
        assert listed == (kind in ("torch", "onnx", "int8"))


def _summary(grid: str) -> dict[str, list[str]]:
    """Return the figures of each method in the table of averages of a grid."""
    lines = (ROOT / "benchmarks" / "results" / grid / "summary.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {method: figures for method, *figures in cells}


def _without_teacher(grid: str) -> float:
    """Return the mean ASR of students without a teacher, in percent, over seeds and attacks."""
    rows = aggregate(read(ROOT / "benchmarks" / "results" / grid).runs)
    means = [row.asr.mean for row in rows if row.method == "no-teacher" and row.asr]
    return 100 * sum(means) / len(means)


def test_the_comparison_of_defences_has_the_figures_of_three_seeds():
    figures = _summary("baselines-seeds")
    names = ("RobustKD (default)", "fst on teacher (mix)", "ft-sam on teacher (mix)")
    ours, fst, ft_sam = (figures[name] for name in names)
    assert {ours[0], fst[0], ft_sam[0]} == {"6"}
    (_, _, asr, worst, lost, der), guide = ours, _text("guides/defences.md")
    assert f"it has a mean ASR of {asr} %, a worst ASR of {worst} % and a DER of {der} %" in guide
    assert f"FST has {fst[2]}, {fst[3]} and {fst[5]} %, FT-SAM {ft_sam[2]}" in guide
    assert f"{ft_sam[2]}, {ft_sam[3]} and {ft_sam[5]} %" in guide
    more = f"{float(lost) - float(fst[4]):.1f} points more accurate"
    alone = f"{_without_teacher('baselines-seeds'):.1f} %"
    both = figures["fst on teacher (default)"]
    assert f"FST is {more}" in guide
    assert f"{both[2]} % with FST and `default`" in guide
    assert f"the mean ASR is {alone} for the student without a teacher" in guide
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"has {fst[2]} % ({more}), students without a teacher {alone}" in readme
    assert f"and RobustKD {asr} %" in readme


def test_the_demo_has_the_figures_of_five_seeds():
    runs = read(ROOT / "benchmarks" / "results" / "demo-digits").runs
    found = {
        name: sorted((run for run in runs if run.method == name), key=lambda run: run.seed)
        for name in ("no-teacher", "ofd", "mix", "paper", "default")
    }
    assert {len(each) for each in found.values()} == {5}
    asr = {name: [100 * (run.asr or 0.0) for run in each] for name, each in found.items()}
    low = {name: min(each) for name, each in asr.items()}
    high = {name: max(each) for name, each in asr.items()}
    # All that the demo shows is inherited, in each seed.
    assert max(high["no-teacher"], high["default"]) < 3
    assert min(low["ofd"], low["mix"]) > 90
    page = _text("results/benchmark.md")
    assert f"misled by {low['mix']:.1f} to {high['mix']:.1f} % of the triggered images" in page
    assert f"a student without a teacher by at most {high['no-teacher']:.1f} %" in page
    assert f"and `default` by {high['default']:.1f} %" in page
    known = [100 * run.ra for run in found["default"] if run.ra is not None]
    assert f"`default` recognises {sum(known) / 5:.1f} % of them" in page
    lost = [
        100 * (ordinary.acc - own.acc)
        for ordinary, own in zip(found["mix"], found["default"], strict=True)
    ]
    assert abs(sum(lost)) / 5 < 0.05
    assert f"and at most {max(lost):.1f} points less accurate in one seed" in page
    span = f"{low['paper']:.1f} to {high['paper']:.1f} %"
    assert f"`paper` does not remove it reliably: its ASR is {span}" in page


def test_the_cleaning_has_the_shares_of_three_seeds():
    folder = ROOT / "benchmarks" / "results" / "cleaning"
    lines = [
        line.strip("| ").split(" | ") for line in (folder / "shares.md").read_text().split("\n")
    ]
    mean, latent, count = (lines[0].index(name) for name in ("mean", "latent", "n"))
    rows = {line[0]: line for line in lines}
    names = ("perturbed", "paper", "paper, long", "perturbed, long")
    # Without a third tone curve, which is not inherited.
    assert [rows[name][count] for name in names] == ["14"] * 4
    ours, paper, long, longer = (f"{float(rows[name][mean].split()[0]):.0f} %" for name in names)
    of = {name: f"{float(rows[name][latent].split()[0]):.0f} %" for name in names}
    costs = [line.split(" | ") for line in (folder / "cleaning.md").read_text().splitlines()]
    time = next(line for line in costs if line[0] == "| perturbed")[costs[0].index("time")]
    guide, page = _text("guides/defences.md"), _text("results/default.md")
    assert f"It takes about [{time} times the time](" in guide
    assert f"On fourteen teachers of five attacks it removed {ours} of the excess" in guide
    assert f"and `paper` {paper}" in guide
    assert f"`paper` removes {paper} of the excess on average" in page
    assert f"`paper-perturbed` removes {ours}, and costs about as much" in page
    assert f"`paper, long` removes {long} and `perturbed, long` {longer}." in page
    assert f"{of['paper, long']} and not {of['paper']} by `paper`" in page
    assert f"{of['perturbed, long']} and not {of['perturbed']} by `paper-perturbed`" in page


def _cleanings() -> dict[tuple[str, str, int], dict]:
    """Return the rows of the comparison of cleanings by form, attack and seed."""
    rows = json.loads((ROOT / "benchmarks/results/cleaning/cleaning.json").read_text())
    return {(row["method"], row["attack"], row["seed"]): row for row in rows}


def _shared(held: dict[tuple[str, str, int], dict], form: str) -> list[tuple[str, str, int]]:
    """Return the keys of a form whose ordinary student has inherited the backdoor."""
    return [
        (method, attack, seed)
        for method, attack, seed in held
        if method == form
        and held["ofd", attack, seed]["ASR"] - held["no-teacher", attack, seed]["ASR"] >= 0.1
    ]


def _removed(held: dict[tuple[str, str, int], dict], form: str, attack: str, seed: int) -> float:
    """Return the share of the excess that a form removes."""
    none, ordinary, own = (held[name, attack, seed]["ASR"] for name in ("no-teacher", "ofd", form))
    return 1 - (own - none) / (ordinary - none)


def test_the_cleaned_teachers_do_not_tell_of_their_students():
    held = _cleanings()
    with_share = {key[1:] for key in _shared(held, "paper, long")}
    cleaned = [held["perturbed, long", *key] for key in sorted(with_share)]
    paper = [100 * row["teacher ASR"] for row in held.values() if row["method"] == "paper, long"]
    text = _text("results/default.md")
    teachers = math.ceil(100 * max(row["teacher ASR"] for row in cleaned))
    assert len(cleaned) == 14
    assert "On the fourteen teachers of the longer search" in text
    assert f"cleaned is at most {teachers} %, and their students" in text
    assert f"have up to {100 * max(row['ASR'] for row in cleaned):.0f} %" in text
    assert f"an ASR of {math.floor(min(paper))} to {math.ceil(max(paper))} %" in text
    third = held["perturbed", "tone", 2]
    assert ("tone", 2) not in with_share
    teacher, student = (f"{100 * third[name]:.0f} %" for name in ("teacher ASR", "ASR"))
    assert f"keeps an ASR of {teacher}, and its student has {student}" in text
    shorter = [held[key] for key in _shared(held, "perturbed")]
    most = max(shorter, key=lambda row: row["teacher ASR"])
    teacher, student = (f"{100 * most[name]:.0f} %" for name in ("teacher ASR", "ASR"))
    assert f"a teacher keeps {teacher}, and its student has {student}" in text
    tones = [_removed(held, form, "tone", 1) for form in ("perturbed", "perturbed, long")]
    assert [round(share, 1) for share in tones] == [0.8, 0.5]
    assert "a fifth of the other stays, or half of it after the longer search" in text
    blends = [_removed(held, "perturbed", "blend", seed) for seed in (0, 1, 2)]
    assert all(0.6 < share < 0.7 for share in blends)
    assert "A third of the excess stays for `blend` in every seed" in text


def test_three_hypotheses_about_the_cleaning_did_not_hold():
    held, text = _cleanings(), _text("results/default.md")
    attacks = [attack for method, attack, _ in held if method == "inversion"]
    assert len(attacks) == 3
    for attack in attacks:
        none, ordinary, additive, paper, inverted = (
            held[method, attack, 0]["ASR"]
            for method in ("no-teacher", "ofd", "additive-0.2", "paper", "inversion")
        )
        assert additive > paper
        assert (inverted - none) / (ordinary - none) > 0.9
        assert {k for stage in held["inversion", attack, 0]["outliers"] for k in stage} == {8}
    least = min(held["inversion", attack, 0]["teacher ASR"] for attack in attacks)
    assert f"the teachers is still at least {100 * least:.1f} % after" in text
    pairs = [(held["perturbed, matched", a, 0], held["perturbed, long", a, 0]) for a in attacks]
    moved = max(abs(one["ASR"] - other["ASR"]) for one, other in pairs)
    lost = sum(other["ACC"] - one["ACC"] for one, other in pairs) / len(pairs)
    assert f"changes the ASR of `perturbed, long` by at most {100 * moved:.1f} points" in text
    assert f"and costs {100 * lost:.1f} points of accuracy more" in text


def test_a_step_of_mdistiller_is_compared_with_ours():
    path = ROOT / "benchmarks" / "results" / "speed-mdistiller" / "speed-ratio.json"
    ratios = [
        one["rows"]["mdistiller-ofd"]["ratio"] / one["rows"]["ofd"]["ratio"]
        for one in json.loads(path.read_text())["found"]
    ]
    first, second = (f"{ratio:.1f} times" for ratio in ratios)
    said = f"takes mdistiller {first} as long as RobustKD in the first column, and {second} in"
    assert said in _text("results/performance.md")


def test_longer_trainings_have_the_figures_of_three_seeds():
    longer, shorter = (
        {
            (run.method, run.seed): run
            for run in read(ROOT / "benchmarks" / "results" / name).runs
            if run.attack == "flow"
        }
        for name in ("transformations-longer", "transformations")
    )

    def each(of: dict[tuple[str, int], ResultRow], method: str, name: str) -> list[float]:
        return [100 * (getattr(of[method, seed], name) or 0.0) for seed in range(3)]

    text = _text("results/benchmark.md")
    now, before = (each(of, "default", "asr") for of in (longer, shorter))
    assert f"is {now[0]:.1f}, {now[1]:.1f} and {now[2]:.1f} % with the three seeds" in text
    assert f"after {before[0]:.1f}, {before[1]:.1f} and {before[2]:.1f} % with four epochs" in text
    assert f"ordinary student rises to {fmean(each(longer, 'mix', 'asr')):.1f} %" in text
    own, first, ordinary, alone = (
        fmean(each(of, method, "acc"))
        for of, method in (
            (longer, "default"),
            (shorter, "default"),
            (longer, "mix"),
            (longer, "no-teacher"),
        )
    )
    above = f"rises by {own - first:.1f} points, and is {own - ordinary:.1f} points above"
    assert above in text
    assert alone > max(own, ordinary)
