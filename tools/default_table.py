"""Table of the default method: one line for each pair of networks that inherits backdoors."""

from __future__ import annotations

from pathlib import Path

from robustkd.report.aggregate import aggregate
from robustkd.report.results import read
from robustkd.report.summaries import summaries
from robustkd.report.tables import percent

SETTINGS = {
    "transformations": "Fashion-MNIST",
    "transformations-mobilenet": "Fashion-MNIST",
    "cifar": "CIFAR-10",
}
"""Name of the data set by the folder of the results."""
_HEAD = (
    "Data, teacher to student",
    "Attacks",
    "Seeds",
    "ASR % ordinary",
    "ASR %",
    "ASR % worst seed",
    "ACC points lost",
)


def default_table(results: Path) -> str:
    """Markdown table of the default method over the attacks that an ordinary student inherits.

    A pair whose ordinary students inherit none of the measured backdoors has no line.

    Args:
        results: Folder with the folders of :data:`SETTINGS`.

    Raises:
        InputError: If results are missing or damaged.
    """
    lines = [list(_HEAD), ["---"] + ["---:"] * (len(_HEAD) - 1)]
    for folder, data in SETTINGS.items():
        rows = aggregate(read(results / folder).runs)
        seeds = {row.acc.n for row in rows if row.method == "default"}
        lines.extend(
            [
                f"{data}, {summary.pair}",
                str(summary.settings),
                "-".join(map(str, sorted({min(seeds), max(seeds)}))),
                percent(summary.ordinary_asr),
                percent(summary.asr),
                percent(summary.worst),
                percent(round(summary.lost, 3) + 0.0),  # Adding 0.0 avoids "-0.0".
            ]
            for summary in summaries(rows)
            if summary.method == "default"
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
