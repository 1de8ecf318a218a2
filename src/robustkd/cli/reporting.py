"""``robustkd report``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from robustkd.cli.output import print_plain, print_progress


def report(
    run: Path,
    /,
    *,
    out: Path | None = None,
) -> None:
    """Write the report, the model card and the summary of a finished run again.

    They are written from results.json and the other small files of the run; nothing is measured.
    Changes that you made to report.html, MODEL_CARD.md or summary.md in the folder are lost.

    Args:
        run: Folder of a run of ``distill``, ``demo`` or ``attack``.
        out: New folder for the three files. Default: the folder of the run.
    """
    from robustkd import report as reports
    from robustkd.pipeline.run_checks import unchanged
    from robustkd.pipeline.run_files import RESULTS, check_finished, has

    check_finished(run, RESULTS)
    if has(run, RESULTS) and not unchanged(run, RESULTS):
        print_progress(f"warning: {run / RESULTS} is not the file that its run wrote")
    page, card, summary = reports.write_report(run, out)
    print_plain(f"Report: {page}")
    print_plain(f"Model card: {card}")
    print_plain(f"Summary: {summary}")
    rows = reports.aggregate(reports.read(run).runs)
    Console(highlight=False, markup=False, emoji=False).print(reports.headline(rows))
