"""A command in a terminal of 80 columns, and what a person sees of it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS, ROWS = 80, 24
_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[()=>78][0-9A-B]?")
_MOST_SECONDS = 600.0


class Screen:
    r"""What a terminal shows, including what has scrolled away.

    It knows what progress bars use: carriage returns, moves of the cursor, and erasing. Colours are
    ignored.

    >>> screen = Screen(columns=10)
    >>> screen.feed("10 %\r20 %\nabcdefghijkl\x1b[1A\x1b[2K")
    >>> screen.text()
    '20 %\n\nkl'
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0

    def text(self) -> str:
        """Return all lines without blanks at their ends."""
        return "\n".join("".join(line).rstrip() for line in self._lines).rstrip("\n")

    def feed(self, text: str) -> None:
        """Show a piece of output."""
        place = 0
        while place < len(text):
            control = _CONTROL.match(text, place)
            if control is not None:
                self._control(control[1] or "", control[2] or "")
                place = control.end()
            else:
                self._show(text[place])
                place += 1

    def _show(self, letter: str) -> None:
        if letter == "\n":
            # The terminal's driver adds the carriage return.
            self._move(self._row + 1)
            self._column = 0
        elif letter == "\r":
            self._column = 0
        elif letter == "\b":
            self._column = max(0, self._column - 1)
        elif letter.isprintable():
            if self._column == self._columns:
                self._move(self._row + 1)
                self._column = 0
            line = self._lines[self._row]
            line.extend(" " * (self._column + 1 - len(line)))
            line[self._column] = letter
            self._column += 1

    def _move(self, row: int) -> None:
        self._row = max(0, row)
        while len(self._lines) <= self._row:
            self._lines.append([])

    def _control(self, numbers: str, what: str) -> None:
        by = int(numbers) if numbers.isdigit() else 0
        line = self._lines[self._row]
        if what in ("A", "B"):
            self._move(self._row + (max(1, by) if what == "B" else -max(1, by)))
        elif what == "C":
            self._column = min(self._columns - 1, self._column + max(1, by))
        elif what == "D":
            self._column = max(0, self._column - max(1, by))
        elif what == "G":
            self._column = max(0, by - 1)
        elif what == "K":
            line[:] = [] if by == 2 else line[: self._column] if by == 0 else line
        elif what == "J":
            del line[self._column :]
            del self._lines[self._row + 1 :]


@dataclass(frozen=True)
class Recording:
    """What a command showed.

    Attributes:
        code: Exit code.
        seconds: Wall time.
        end: The text at the end.
        meanwhile: The last lines at half of the time, if something was in progress; else empty.
    """

    code: int
    seconds: float
    end: str
    meanwhile: str


def record(command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> Recording:
    """Run a command in a terminal of 80 columns and 24 rows.

    Args:
        command: The program and its arguments.
        folder: Working directory.
        environment: Variables; size and type of the terminal are added.

    Raises:
        TimeoutError: If it takes longer than 10 minutes.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    own = {**environment, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=own, close_fds=True
    )
    os.close(theirs)
    screen, states = Screen(), list[tuple[float, str]]()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := _piece(ours, started + _MOST_SECONDS):
        screen.feed(decoder.decode(piece))
        states.append((time.monotonic() - started, screen.text()))
    os.close(ours)
    code, seconds = process.wait(), time.monotonic() - started
    return Recording(code, seconds, screen.text(), _meanwhile(states, seconds))


def _piece(terminal: int, until: float) -> bytes:
    """Return the next output; nothing at its end."""
    if not select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0]:
        raise TimeoutError
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux reports the end of the process as an error of the terminal
        return b""


def _meanwhile(states: Sequence[tuple[float, str]], seconds: float) -> str:
    """Return the state with a progress bar that is nearest to half of the time."""
    busy = [(abs(when - seconds / 2), text) for when, text in states if "%" in _last(text)]
    return min(busy, default=(0.0, ""))[1]


def _last(text: str) -> str:
    return text.rpartition("\n")[2]
