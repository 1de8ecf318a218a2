"""Measure how time and memory of a distillation grow, and compare the memory with a bare loop.

    python benchmarks/growth.py --out benchmarks/results/growth

Every case of an axis takes a few steps, each time in a process of its own, see
``benchmarks/growth_case.py``. Cases alternate, and the medians of several rounds are shown. With
``--axes``, the other axes in the results are kept, so that a measurement can be made in parts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from growth_case import BARE, SEARCH, Case

from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = dict[Case, list[dict[str, float]]]
"""Results of :func:`growth_case.measure` in every round, by case."""

SMALL = Case()
LARGE = Case(teacher="resnet-18", student="mobilenet-v2-0.5", side=224, batch=16)
THIN = Case(teacher="wrn-10-2", student="wrn-10-1", batch=8)
MANY = 1_000
"""Number of classes that is compared with ten on large images."""
BOUNDS = {"kd": 1.15, "ofd": 1.4, "default": 2.0}
"""Largest peak memory that we accept, relative to the bare loop."""
_WIDE = 20
"""Ratio of values above which an axis is logarithmic."""
_HEADROOM = 1.3
"""Height of a panel relative to its highest value, with room for the legend."""


@dataclass(frozen=True)
class Point:
    """A value on an axis with its case; the curve that it belongs to is named."""

    curve: str
    value: str
    case: Case


def _memory() -> list[Point]:
    found = []
    for case in (replace(SMALL, batch=128), LARGE):
        name = pair(case)
        found += [Point(name, how, replace(case, method=how)) for how in (BARE, *BOUNDS)]
        parts = replace(case, method="default", accumulate=2)
        found.append(Point(name, "default, --accumulate 2", parts))
    return found


def _images() -> list[Point]:
    sizes = [(1_000, False), (10_000, False), (60_000, False), (1_000, True), (200_000, True)]
    return [
        Point(
            "default, from files" if streamed else "default, in memory",
            f"{count:,}",
            replace(SMALL, method="default", images=count, streamed=streamed),
        )
        for count, streamed in sizes
    ]


def _classes() -> list[Point]:
    large = [
        Point(f"{method}, 224 px", f"{count:,}", replace(LARGE, method=method, classes=count))
        for method in (BARE, "default")
        for count in (10, MANY)
    ]
    return large + [
        Point("default, 32 px", f"{count:,}", replace(SMALL, method="default", classes=count))
        for count in (10, 100, MANY)
    ]


def _sides() -> list[Point]:
    return [
        Point(method, str(side), replace(THIN, method=method, side=side, steps=3))
        for method in (BARE, "default")
        for side in (28, 56, 112, 224)
    ]


def _stages() -> list[Point]:
    none = Point("ofd", "0", replace(SMALL, method="kd"))
    return [
        none,
        *(Point("ofd", str(k), replace(SMALL, method="ofd", stages=k)) for k in (1, 2, 3)),
    ]


def _families() -> list[Point]:
    return [
        Point("learned", str(2 + k), replace(SMALL, method="learned", families=k)) for k in range(4)
    ]


def _search() -> list[Point]:
    return [
        Point("default", f"{count:,}", replace(SMALL, method=SEARCH, classes=count, steps=10))
        for count in (10, MANY)
    ]


AXES: dict[str, Callable[[], list[Point]]] = {
    "memory": _memory,
    "images": _images,
    "classes": _classes,
    "side": _sides,
    "stages": _stages,
    "families": _families,
    "search": _search,
}


def pair(case: Case) -> str:
    """Return the networks and images of a case in words."""
    return (
        f"{case.teacher} to {case.student}, {case.channels} x {case.side} x {case.side}, "
        f"batch {case.batch}"
    )


def run(case: Case) -> dict[str, float]:
    """Measure a case in a process of its own, with one thread."""
    done = subprocess.run(  # noqa: S603 (our own script)
        [sys.executable, str(Path(__file__).with_name("growth_case.py")), json.dumps(asdict(case))],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(cases: Sequence[Case], rounds: int, tell: Callable[[str], object]) -> Runs:
    """Measure all cases in every round, so that the load of the machine affects all."""
    found: Runs = {case: [] for case in cases}
    for number in range(rounds):
        for case, runs in found.items():
            runs.append(run(case))
            tell(f"round {number + 1} of {rounds}: {case.method}, {pair(case)}: {runs[-1]}\n")
    return found


def peak(one: dict[str, float]) -> float:
    """Return the peak memory of set-up and steps above the ready state, in MiB."""
    return max(one["set-up"], one.get("steps", 0.0))


def spread(values: Iterable[float], digits: int = 0) -> str:
    """Format the median (lowest to highest)."""
    ordered = sorted(values)
    shown = (statistics.median(ordered), ordered[0], ordered[-1])
    middle, least, most = (f"{value:,.{digits}f}" for value in shown)
    return f"{middle} ({least} to {most})"


def markdown(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Format rows, of which the first is the head, with so many columns of text at the left."""
    head, *body = rows
    lines = [head, ["---"] * texts + ["---:"] * (len(head) - texts), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def memory_table(found: Runs) -> str:
    """Compare the peak memory of methods with that of the bare loop, in pairs of each round."""
    head = (
        "networks and images",
        "method",
        "peak above the ready state, MiB",
        "times the bare loop",
        "accepted",
        "with validation and checkpoint, MiB",
        "process, MiB",
        "n",
    )
    rows = [head]
    points = [point for point in _memory() if point.case in found]
    loops = {point.curve: found[point.case] for point in points if point.value == BARE}
    for point in points:
        runs = found[point.case]
        ratios = [
            peak(own) / peak(loop) for own, loop in zip(runs, loops[point.curve], strict=False)
        ]
        accepted = BOUNDS.get(point.value)
        rows.append(
            (
                point.curve,
                "bare loop" if point.value == BARE else point.value,
                spread(map(peak, runs)),
                "1" if point.value == BARE else spread(ratios, 2),
                "" if accepted is None else f"{accepted:g}",
                ""
                if point.value == BARE
                else spread(max(peak(one), one["validation"]) for one in runs),
                spread(one["process"] for one in runs),
                str(len(runs)),
            )
        )
    return markdown(rows, 2)


def many_table(found: Runs) -> str:
    """Compare the default method with a thousand classes of large images with ten classes."""
    few, many = (replace(LARGE, method="default", classes=count) for count in (10, MANY))
    head = ("networks and images", "classes", "CPU milliseconds of a step", "times ten classes")
    rows = [(*head, "process, MiB", "n")]
    for case in (few, many):
        runs = found.get(case, [])
        pairs = zip(runs, found.get(few, []), strict=False)
        ratios = [own["milliseconds"] / ten["milliseconds"] for own, ten in pairs]
        if ratios:
            shown = (spread(one["milliseconds"] for one in runs), spread(ratios, 2))
            process = spread(one["process"] for one in runs)
            rows.append((pair(case), f"{case.classes:,}", *shown, process, str(len(runs))))
    return markdown(rows, 1)


def growth_table(found: Runs) -> str:
    """List time and memory along all axes."""
    head = (
        "axis",
        "curve",
        "value",
        "CPU milliseconds of a step",
        "CPU seconds before the steps",
        "peak above the ready state, MiB",
        "images and networks, MiB",
        "process, MiB",
        "n",
    )
    points = [(axis, point) for axis, make in AXES.items() if axis != "memory" for point in make()]
    rows = [_row(axis, point, found[point.case]) for axis, point in points if point.case in found]
    return markdown([head, *rows], 3)


def _row(axis: str, point: Point, runs: list[dict[str, float]]) -> tuple[str, ...]:
    stepped = point.case.method != SEARCH
    return (
        axis,
        point.curve.replace(BARE, "bare loop"),
        point.value,
        spread(one["milliseconds"] for one in runs) if stepped else "",
        spread((one["set-up seconds"] for one in runs), 1),
        spread(map(peak, runs)),
        spread((one["images"] for one in runs), 1) if stepped else "",
        spread(one["process"] for one in runs),
        str(len(runs)),
    )


def figure(found: Runs) -> str:
    """Draw time and memory along the axes as an SVG file; the same results give the same bytes."""
    from matplotlib.figure import Figure

    from robustkd.report.figures import own_settings

    axes = [name for name in AXES if name not in ("memory", "search")]
    shown = (
        ("milliseconds of a step", lambda one: one["milliseconds"]),
        ("process, MiB", lambda one: one["process"]),
    )
    with own_settings():
        drawn = Figure(figsize=(2.6 * len(axes), 5.2), layout="constrained")
        panels = drawn.subplots(len(shown), len(axes), squeeze=False)
        for column, axis in enumerate(axes):
            for row, (label, value) in enumerate(shown):
                _panel(panels[row][column], AXES[axis](), found, value)
                panels[row][column].set(xlabel=axis, ylabel="" if column else label)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(text, format="svg", facecolor="white", metadata=nothing)
    return text.getvalue().strip() + "\n"


def _panel(
    panel: Axes, points: Sequence[Point], found: Runs, value: Callable[[dict[str, float]], float]
) -> None:
    """Draw one curve for each name; axes with large steps are logarithmic."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        runs = found.get(point.case)
        if runs:
            place = float(point.value.replace(",", ""))
            height = statistics.median(value(one) for one in runs)
            curves.setdefault(point.curve, []).append((place, height))
    for (name, line), mark in zip(curves.items(), "osD^v", strict=False):
        label = name.replace(BARE, "bare loop")
        panel.plot(*zip(*line, strict=True), marker=mark, markersize=4, label=label)
    places = [place for line in curves.values() for place, _ in line]
    if places:
        highest = max(height for line in curves.values() for _, height in line)
        panel.set_ylim(0, _HEADROOM * highest)
        panel.legend(frameon=False, fontsize=7)
        if max(places) > _WIDE * max(1.0, min(places)):
            panel.set_xscale("log")
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def read(file: Path) -> Runs:
    """Read the results of an earlier measurement; empty if there are none."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {Case(**row["case"]): row["runs"] for row in content["cases"]}


def write(found: Runs, out: Path) -> None:
    """Write ``growth.json``, ``growth.svg`` and three tables in Markdown."""
    make_folder(out)
    rows = [{"case": asdict(case), "runs": runs} for case, runs in found.items()]
    write_json(out / "growth.json", {"cases": rows, "environment": environment()})
    write_text(out / "memory.md", memory_table(found))
    write_text(out / "many.md", many_table(found))
    write_text(out / "growth.md", growth_table(found))
    write_text(out / "growth.svg", figure(found))


def main() -> None:
    """Measure the chosen axes, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--tables-only", action="store_true", help="only format old results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth"))
    given = parser.parse_args()
    found = read(given.out / "growth.json")
    if not given.tables_only:
        cases = [point.case for axis in given.axes for point in AXES[axis]()]
        found |= measure(list(dict.fromkeys(cases)), given.rounds, sys.stderr.write)
    write(found, given.out)
    sys.stdout.write(f"{memory_table(found)}\n{many_table(found)}\n{growth_table(found)}")


if __name__ == "__main__":
    main()
