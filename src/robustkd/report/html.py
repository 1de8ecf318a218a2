"""The report of a run as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from robustkd.core.files import write_text
from robustkd.report import facts, tables
from robustkd.report.aggregate import Row, by_cell
from robustkd.report.pages import Content, load, out_folder

_SHOWN_CLASSES = 15
_MOST_CLASSES = 2000
_MOST_EPOCHS = 500


@dataclass(frozen=True, slots=True)
class Section:
    """One setting of the report: its name, its rows, and its charts as inline SVG."""

    name: str
    rows: Sequence[Row]
    acc: str
    asr: str


def write_html(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html`` of a run, from its results and arrays.

    The page loads no external resource, runs no script, and shows every name as plain text.

    Args:
        folder: The run folder.
        out: Folder of the page, which is created; None for the run folder.

    Returns:
        Path of the page.

    Raises:
        InputError: If a file of the folder is missing or damaged.
        WriteError: If the page cannot be written.
    """
    text = html_page(load(folder))
    path = out_folder(folder, out) / "report.html"
    write_text(path, text)
    return path


def html_page(content: Content) -> str:
    """Return the text of the page.

    Raises:
        InputError: If ``arrays.npz`` or ``config.yaml`` of the folder is damaged.
    """
    # Imported here, because a terminal table does not need matplotlib.
    from robustkd.report import arrays, curves, gallery

    saved = arrays.read_arrays(content.folder)
    records = content.records
    page: str = _template().render(
        run=content,
        headline=_unbroken(content.headline),
        sections=list(_sections(content.rows)),
        several=any(row.acc.n > 1 for row in content.rows),
        trigger=list(gallery.trigger(saved)),
        strip=gallery.strip(saved, records.classes),
        masks=gallery.masks(saved),
        found={each.who: gallery.found(saved, each.who) for each in records.audits.found},
        curves=list(curves.charts(records.trainings)),
        details={
            "Configuration": list(facts.flat(content.results.config)),
            "Environment": content.environment,
            "Records": content.other_records,
        },
        words=tables,
        shown_classes=_SHOWN_CLASSES,
        most_classes=_MOST_CLASSES,
        most_epochs=_MOST_EPOCHS,
    )
    return page


def _unbroken(text: str) -> str:
    """Keep numbers, units and intervals on one line."""
    text = re.sub(r"\[(-?[\d.]+), (-?[\d.]+)\]", "[\\1,\u00a0\\2]", text)
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text).replace("[-", "[\u2212")


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
