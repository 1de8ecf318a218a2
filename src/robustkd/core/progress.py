"""Progress: a bar in terminals, the same or lines in notebooks, and occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

_FIGURES = ("loss", "acc")
"""Values that fit next to a bar in 80 columns."""
_LABEL = 24
_SECONDS = 60.0
"""Least time between two lines in a redirected log."""


@runtime_checkable
class Update(Protocol):
    """Function that advances the bar by one step and shows values such as ``loss 1.23``."""

    def __call__(self, **figures: float) -> None:
        """Advance by one step; without arguments, the last values stay."""

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar.

        In a redirected log, a line is printed only if the last one, or the beginning, was at least
        a minute ago.
        """


class _Bar:
    """Bar of rich in a terminal, and in a notebook with ipywidgets."""

    def __init__(self, label: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._shown = self._console.is_terminal or self._console.is_jupyter
        # Without ipywidgets, rich shows a warning in place of every bar.
        live = self._console.is_terminal or (self._shown and find_spec("ipywidgets") is not None)
        self._last = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            expand=True,
            disable=not live,
        )
        short = label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
        self._task = self.progress.add_task(short, total=total, figures="")

    def __call__(self, **figures: float) -> None:
        self.progress.advance(self._task)
        if figures:
            some = {name: figures[name] for name in _FIGURES if name in figures} or figures
            first = list(some.items())[: len(_FIGURES)]
            text = " ".join(f"{name} {value:.3g}" for name, value in first)
            self.progress.update(self._task, figures=text)

    def line(self, text: str) -> None:
        if self._shown:
            self.progress.console.print(text)
        elif time.monotonic() - self._last >= _SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._last = time.monotonic()


@contextmanager
def track(label: str, total: int) -> Iterator[Update]:
    """Show a progress bar with label, values and remaining time while the block lasts.

    Args:
        label: Short description, e.g. ``distilling``.
        total: Number of steps.

    Yields:
        A function to call after each step; its method ``line`` prints a line that stays.
    """
    bar = _Bar(label, total)
    with bar.progress:
        yield bar


def epoch_line(label: str, epochs: int, record: dict[str, float]) -> str:
    """Describe a finished epoch in one line.

    >>> record = {"epoch": 3.0, "loss": 1.234, "acc": 0.8712, "ce": 1.0, "validation": 0.852}
    >>> epoch_line("distilling", 30, record)
    'distilling: epoch 3 of 30, loss 1.23, accuracy 87.1 % train, 85.2 % val'
    """
    parts = [f"epoch {record['epoch']:.0f} of {epochs}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.3g}")
    splits = {"train": record.get("acc"), "val": record.get("validation")}
    known = [f"{100 * acc:.1f} % {split}" for split, acc in splits.items() if acc is not None]
    if known:
        parts.append(f"accuracy {', '.join(known)}")
    return f"{label}: {', '.join(parts)}"
