"""The report of a run as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from robustkd.core.files import write_text
from robustkd.report import tables
from robustkd.report.aggregate import Row, aggregate, by_cell
from robustkd.report.results import Results, read
from robustkd.report.verdict import headline

_TEACHER = "teacher_file"


@dataclass(frozen=True, slots=True)
class Section:
    """One setting of the report: its name, its rows, and its charts as inline SVG."""

    name: str
    rows: Sequence[Row]
    acc: str
    asr: str


def write_html(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder, from its results and arrays.

    The page loads no external resource, runs no script, and shows every name as plain text.

    Args:
        folder: The run folder.

    Returns:
        Path of the page.

    Raises:
        InputError: If a file of the folder is missing or damaged.
        WriteError: If the page cannot be written.
    """
    folder = Path(folder)
    # Imported here, because a terminal table does not need matplotlib.
    from robustkd.report import arrays, gallery

    folder = Path(folder)
    results = read(folder)
    saved = arrays.read_arrays(folder)
    rows = aggregate(results.runs)
    cells = list(by_cell(rows))
    page = _template().render(
        title=tables.common_name(cells) or f"{len(cells)} settings",
        headline=headline(rows),
        sections=list(_sections(rows)),
        measured=any(row.asr is not None for row in rows),
        several=any(row.acc.n > 1 for row in rows),
        trigger=list(gallery.trigger(saved)),
        strip=gallery.strip(saved, class_names(results)),
        masks=gallery.masks(saved),
        teacher_file=list(teacher_file(results)),
        details={
            "Configuration": list(flat(results.config)),
            "Environment": list(flat(results.environment)),
            "Records": list(flat({k: v for k, v in results.records.items() if k != _TEACHER})),
        },
        words=tables,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def class_names(results: Results) -> tuple[str, ...]:
    """Class names, from the list ``classes`` of the records; empty if there is none."""
    found = results.records.get("classes")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def teacher_file(results: Results) -> Iterator[tuple[str, str]]:
    """Label and value of each recorded fact on the teacher's file; empty values are left out."""
    found = results.records.get(_TEACHER)
    for name, value in flat(found) if isinstance(found, Mapping) else ():
        if value not in ("", "0"):
            yield name.replace("_", " ").replace(".", " from "), value


def flat(nested: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested mappings to pairs of dotted name and value.

    >>> list(flat({"a": {"b": 1, "c": [2, 3]}, "d": None, "e": {}}))
    [('a.b', '1'), ('a.c', '2, 3'), ('d', 'none'), ('e', '')]
    """
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | Mapping):
        return ", ".join(map(_plain, value))
    return str(value)


def _sections(rows: Sequence[Row]) -> Iterator[Section]:
    from robustkd.report.figures import bars

    cells = by_cell(rows)
    for cell, members in cells.items():
        measured = any(row.asr is not None for row in members)
        asr = bars(members, "asr") if measured else ""
        yield Section(tables.own_name(cell, list(cells)), members, bars(members, "acc"), asr)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("robustkd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
