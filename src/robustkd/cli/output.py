"""Printing of results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustkd.core.errors import printable


def print_plain(line: str) -> None:
    """Print a line without interpreting markup, for lines that contain paths."""
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(line)


def print_words(line: str, *, stderr: bool = False) -> None:
    """Print a sentence, wrapped at words in a terminal, and as one line elsewhere."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    console.print(line, soft_wrap=not console.is_terminal)


def print_progress(line: str) -> None:
    """Print a line about what is being done on stderr, as :func:`print_words` does."""
    print_words(line, stderr=True)


def print_json(content: Mapping[str, object]) -> None:
    """Print results as JSON."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def print_sections(sections: Mapping[str, Mapping[str, object]]) -> None:
    """Print names and descriptions under headings."""
    console = Console(highlight=False, emoji=False)
    for kind, entries in sections.items():
        lines = Table.grid(padding=(0, 2))
        lines.add_column(min_width=16, no_wrap=True)
        lines.add_column(overflow="fold")
        for name, value in entries.items():
            lines.add_row(f"  {escape(name)}", escape(_words(value)))
        console.print(f"[bold]{kind}[/bold]", lines, sep="\n")


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return printable(str(value))


def print_in_terminal(text: str) -> None:
    """Print a line on stderr if it is a terminal; nothing in a redirected log."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(text)
