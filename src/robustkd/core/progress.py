"""Progress bar on stderr; nothing is shown if stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Update(Protocol):
    """Function that advances the bar by one step and shows values such as ``loss=1.23``."""

    def __call__(self, **figures: float) -> None:
        """Advance by one step; without arguments, the last values stay."""


@contextmanager
def track(label: str, total: int) -> Iterator[Update]:
    """Show a progress bar with label, values and remaining time while the block lasts.

    Args:
        label: Short description, e.g. ``distil``.
        total: Number of steps.

    Yields:
        A function to call after each step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(label, total=total, figures="")

        def update(**figures: float) -> None:
            progress.advance(task)
            if figures:
                text = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
                progress.update(task, figures=text)

        yield update
