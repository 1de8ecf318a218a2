"""Writes the tables of README and docs from committed results: ``python -m robustkd.report.docs``.

A table stands between ``<!-- table: FOLDER -->`` and ``<!-- end -->``, where ``FOLDER`` holds a
``results.json``; the tables of architectures between ``<!-- pairs: FILE -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from robustkd.errors import RobustKDError
from robustkd.report.pairs import pairs_tables
from robustkd.report.results import read
from robustkd.report.rows import aggregate
from robustkd.report.tables import markdown_table

_TABLE = re.compile(r"(<!-- (table|pairs): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(page: Path, root: Path) -> bool:
    """Replace every table of a Markdown page by what the results say now.

    Args:
        page: The file to change.
        root: Folder that the tables' folders are in.

    Returns:
        Whether the page was different before.

    Raises:
        InputError: If a folder's results are missing or damaged.
    """

    def table(found: re.Match[str]) -> str:
        source = root / found[3]
        if found[2] == "pairs":
            made = pairs_tables(source)
        else:
            made = markdown_table(aggregate(read(source).runs))
        return f"{found[1]}{made}{found[4]}"

    before = page.read_text(encoding="utf-8")
    after = _TABLE.sub(table, before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return after != before


def main() -> None:
    """Fill README.md and docs/*.md of the working directory."""
    root = Path.cwd()
    try:
        for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
            state = "changed" if fill_tables(page, root) else "up to date"
            sys.stdout.write(f"{page.relative_to(root)}: {state}\n")
    except RobustKDError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
