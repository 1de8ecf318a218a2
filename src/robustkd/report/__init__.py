"""Reports of measured results: a terminal table, a model card, and one self-contained HTML file."""

from __future__ import annotations

from robustkd.report.aggregate import Cell, Row, Statistic, aggregate, by_cell
from robustkd.report.audits import Audits
from robustkd.report.comparison import GRID_FILES, grid_files
from robustkd.report.html import write_html
from robustkd.report.markdown import write_model_card, write_summary
from robustkd.report.next_step import next_step
from robustkd.report.records import read_records
from robustkd.report.results import ResultRow, Results, read
from robustkd.report.summaries import Summary, summaries
from robustkd.report.tables import console_table, markdown_table
from robustkd.report.verdict import headline, plain_words
from robustkd.report.writing import write_report

__all__ = [
    "GRID_FILES",
    "Audits",
    "Cell",
    "ResultRow",
    "Results",
    "Row",
    "Statistic",
    "Summary",
    "aggregate",
    "by_cell",
    "console_table",
    "grid_files",
    "headline",
    "markdown_table",
    "next_step",
    "plain_words",
    "read",
    "read_records",
    "summaries",
    "write_html",
    "write_model_card",
    "write_report",
    "write_summary",
]
