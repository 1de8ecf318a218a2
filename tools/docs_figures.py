"""Draw the figures of README and docs from committed results: ``python -m tools.docs_figures``."""

from __future__ import annotations

import sys
from pathlib import Path

from robustkd.core.errors import RobustKDError
from robustkd.core.files import write_text
from robustkd.report.aggregate import aggregate
from robustkd.report.figures import scatter
from robustkd.report.results import read

FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "docs/assets/acc-asr.svg": (
        "benchmarks/results/transformations",
        ("no-teacher", "mix", "default"),
    ),
    "docs/assets/acc-asr-transformations.svg": ("benchmarks/results/transformations", ()),
    "docs/assets/acc-asr-compact.svg": ("benchmarks/results/compact", ()),
}
"""Folder of the results and the methods that are shown (none: all), by the file of the figure."""


def figure(file: str, root: Path) -> str:
    """Scatter plot of accuracy against attack success rate, as SVG.

    Args:
        file: A key of :data:`FIGURES`.
        root: Folder to which the results are relative.

    Raises:
        InputError: If the results are missing or damaged.
    """
    place, methods = FIGURES[file]
    rows = aggregate(read(root / place).runs)
    return scatter([row for row in rows if not methods or row.method in methods]) + "\n"


def main() -> None:
    """Draw all figures below the working directory."""
    try:
        for file in FIGURES:
            write_text(Path(file), figure(file, Path.cwd()))
            sys.stdout.write(f"{file}\n")
    except RobustKDError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
