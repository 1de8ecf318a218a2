"""Write the tables of README and docs from committed results: ``python -m tools.docs_tables``.

A table is the text between ``<!-- table: PLACE -->`` and ``<!-- end -->``. PLACE is a folder with a
``results.json``, a JSON file with a list of rows that all have the same keys, or a Markdown file
that a benchmark wrote, which is copied. A folder can be followed by the kind of the table:
``methods`` (default), ``headline``, ``attacks``, ``summary`` or ``ablation``. A file can be
followed by ``pairs``, for the tables of architectures, and the folder of all results by
``default``, for the table of the default method.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from robustkd.core.errors import InputError, RobustKDError, UsageError
from robustkd.report.aggregate import aggregate
from robustkd.report.comparison import ablation_table, attack_table, headline_table, summary_table
from robustkd.report.results import read
from robustkd.report.tables import markdown_table
from tools.default_table import default_table
from tools.pairs_table import pairs_tables

_TABLE = re.compile(r"(<!-- table: (\S+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = {
    "methods": markdown_table,
    "headline": headline_table,
    "attacks": attack_table,
    "summary": summary_table,
    "ablation": ablation_table,
}


def fill_tables(page: Path, root: Path) -> bool:
    """Replace every table of a Markdown page by that of the current results.

    Args:
        page: The file to change.
        root: Folder to which the places of the tables are relative.

    Returns:
        Whether the page has changed.

    Raises:
        InputError: If results are missing or damaged.
        UsageError: If a kind of table does not exist.
    """

    def table(found: re.Match[str]) -> str:
        place, kind = root / found[2], found[3] or "methods"
        if kind == "pairs":
            made = pairs_tables(place)
        elif kind == "default":
            made = default_table(place)
        elif place.suffix == ".json":
            made = plain_table(place)
        elif place.suffix == ".md":
            made = _text(place)
        elif kind in _KINDS:
            made = _KINDS[kind](aggregate(read(place).runs))
        else:
            raise UsageError(f"{page}: table {kind!r}; expected one of {', '.join(_KINDS)}")
        return f"{found[1]}{made}{found[4]}"

    before = page.read_text(encoding="utf-8")
    after = _TABLE.sub(table, before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return after != before


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def plain_table(file: Path) -> str:
    """Format the rows of a JSON file as a Markdown table, with their keys as its head.

    Raises:
        InputError: If the file is not a list of rows with the same keys.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        head = list(rows[0])
        lines = [[_cell(row[key]) for key in head] for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file}: no list of rows with the same keys ({error})") from error
    titles = [key.replace("_", " ") for key in head]
    return "".join(f"| {' | '.join(line)} |\n" for line in (titles, ["---"] * len(head), *lines))


def _cell(value: object) -> str:
    """Escape a value for a cell: one line, without active Markdown or HTML."""
    text = "" if value is None else str(value)
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def main() -> None:
    """Fill README.md and all pages in docs of the working directory."""
    root = Path.cwd()
    try:
        for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
            state = "changed" if fill_tables(page, root) else "up to date"
            sys.stdout.write(f"{page.relative_to(root)}: {state}\n")
    except RobustKDError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
