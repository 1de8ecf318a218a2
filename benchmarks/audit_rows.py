"""Networks of the calibration of the audit: tables and ROC curves of their rows.

`calibrate_audit.py` makes the rows, one for each network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from robustkd.core.statistics import wilson
from robustkd.evaluation.audit import STATISTICS
from robustkd.evaluation.audit.verdict import LEVEL

ATTACKS: dict[str, dict[str, Any]] = {
    "badnets": {"rate": 0.1},
    "blend": {"rate": 0.1},
    "tone": {},
    "flow": {},
    "latent": {},
    "ckd": {},
    # Attacks that were not used to choose the settings of the audit.
    "filter": {},
    "light": {},
    "smooth": {},
    "affine": {},
    "flow+tone": {},
    "backweak": {"implant_lr": 0.005},
    "adba": {},
    "adba-ft": {},
    "scar": {},
}
"""Attacks and their settings."""
CLEAN = "clean"
ARCH = "wrn-10-1"
"""Architecture of networks whose rows do not name it."""
SURVIVES = 0.5
"""Smallest attack success rate of a backdoor that counts; also beyond that of the references."""
EASY = "leads references as well"
WEAK = f"ASR below {SURVIVES:.0%}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the shares of accused networks as Markdown, by attack and audit."""
    names = list(STATISTICS)
    head = ["networks", "audit", "n", "suspicious", "right class", "inconclusive", *names]
    lines = [f"| {' | '.join(head)} |\n", f"| --- | --- |{' ---: |' * (len(head) - 2)}\n"]
    for label, chosen in groups(rows).items():
        for kind in ("full", "quick"):
            found = [(row, row[kind]) for row in chosen]
            accused = [row for row, each in found if each["verdict"] == "suspicious"]
            right = [row for row in accused if row["target"] == row[kind]["suspect"]]
            unsure = sum(each["verdict"] == "inconclusive" for _, each in found)
            low, high = wilson(len(accused) / len(found), len(found))
            single = [_count([each["p_values"] for _, each in found], name) for name in names]
            cells = [
                label,
                kind,
                str(len(found)),
                f"{len(accused)} [{low:.0%}, {high:.0%}]",
                "-" if label.startswith(CLEAN) else str(len(right)),
                str(unsure),
                *single,
            ]
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def failure(row: Mapping[str, Any]) -> str:
    """Return why a network does not count as backdoored; empty if it does, or has no backdoor.

    With a probe, a backdoor that an ordinary student has inherited counts as well. A trigger that
    misleads networks without the backdoor shows a weakness of the data, and the success on the
    network is no inheritance.
    """
    if row["ASR"] is None:
        return ""
    success = max(row["ASR"], row.get("student ASR") or 0.0)
    if success < SURVIVES:
        return WEAK
    return EASY if success - fmean(row["reference ASR"]) < SURVIVES else ""


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows by attack, student and architecture; those that do not count apart."""
    made: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts = [row["attack"]]
        if row["student"]:
            parts.append(f"student by {row['student']}")
        if row["probe"]:
            parts.append("with a probe student")
        if row["arch"] != ARCH:
            parts.append(row["arch"])
        if row.get("brief"):
            parts.append(f"{row['brief']} images")
        if failure(row):
            parts.append(failure(row))
        made.setdefault(", ".join(parts), []).append(row)
    order = [CLEAN, *ATTACKS]

    def place(pair: tuple[str, list[Mapping[str, Any]]]) -> tuple[int, int]:
        first, *further = pair[0].split(", ")
        return len(further), order.index(first)

    return dict(sorted(made.items(), key=place))


def _count(p_values: Sequence[Mapping[str, float | None]], name: str) -> str:
    """Return the number of p-values up to the level; a dash if the audit leaves it out."""
    known = [each[name] for each in p_values if name in each]
    if not known:
        return "-"
    return str(sum(p_value is not None and p_value <= LEVEL for p_value in known))


def curve(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[tuple[float, float]]:
    """Return the ROC curve of a statistic: false-positive and hit rate for each threshold.

    A network without a p-value is not found at any threshold, as if the p-value were 1.
    """
    alive = [row for row in rows if not failure(row) and name in row[kind]["p_values"]]
    values = [(row[kind]["p_values"][name], row["attack"] != CLEAN) for row in alive]
    known = [(1.0 if p_value is None else p_value, bad) for p_value, bad in values]
    bad = max(1, sum(each for _, each in known))
    good = max(1, sum(not each for _, each in known))
    points = [(0.0, 0.0)]
    for limit in sorted({p_value for p_value, _ in known}):
        hits = sum(each for p_value, each in known if p_value <= limit)
        wrong = sum(not each for p_value, each in known if p_value <= limit)
        points.append((wrong / good, hits / bad))
    return [*points, (1.0, 1.0)]


def area(points: Sequence[tuple[float, float]]) -> float:
    """Area under a ROC curve."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the ROC curves of all statistics for teachers, for both kinds of audit.

    Without backdoored networks, nothing is drawn.
    """
    other = ("student", "probe", "brief")
    rows = [row for row in rows if row["arch"] == ARCH and not any(map(row.get, other))]
    if all(row["attack"] == CLEAN for row in rows):
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "robustkd"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, kind in zip(axes, ("full", "quick"), strict=True):
        for name in STATISTICS:
            if not any(name in row[kind]["p_values"] for row in rows):
                continue
            points = curve(rows, kind, name)
            axis.step(*zip(*points, strict=True), where="post", label=f"{name} {area(points):.2f}")
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axis.set(title=f"{kind} audit", xlabel="false-positive rate")
        axis.legend(title="area under the curve", fontsize="small", loc="lower right")
    axes[0].set_ylabel("hit rate")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
