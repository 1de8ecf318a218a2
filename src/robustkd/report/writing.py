"""Writing all texts of a run: the report, the model card and the summary."""

from __future__ import annotations

from pathlib import Path

from robustkd.core.errors import UsageError
from robustkd.core.files import check_free, write_text
from robustkd.report.html import html_page
from robustkd.report.markdown import model_card, summary
from robustkd.report.pages import load, out_folder


def write_report(folder: str | Path, out: str | Path | None = None) -> tuple[Path, ...]:
    """Write ``report.html``, ``MODEL_CARD.md`` and ``summary.md`` of a finished run.

    Nothing is written if a file of the run is damaged. The report is written last.

    Args:
        folder: The run folder.
        out: New folder for the files; None for the run folder.

    Returns:
        Paths of the report, the model card and the summary.

    Raises:
        UsageError: If ``out`` is not empty, or the folder is that of a grid and ``out`` is None.
        InputError: If a file of the run is missing or damaged.
        WriteError: If a file cannot be written.
    """
    if out is not None:
        check_free(Path(out))
    content = load(folder)
    if content.kind == "grid" and "cells" in content.results.config and out is None:
        raise UsageError(
            f"{folder} has the results of a grid, whose summary.md is its table; robustkd bench "
            "--tables-only writes it again. Give --out for a report elsewhere"
        )
    texts = {
        "summary.md": summary(content),
        "MODEL_CARD.md": model_card(content),
        "report.html": html_page(content),
    }
    to = out_folder(folder, out)
    for name, text in texts.items():
        write_text(to / name, text)
    return tuple(to / name for name in reversed(texts))
