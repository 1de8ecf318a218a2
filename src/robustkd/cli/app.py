"""The command ``robustkd``, its error messages and its exit codes."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import NoReturn

from cyclopts import App, CycloptsError, MissingArgumentError
from rich.console import Console

from robustkd.cli.files import from_files
from robustkd.cli.flags import check_whole
from robustkd.cli.naming import in_flags
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.errors import InputError, RobustKDError, UsageError, printable, told
from robustkd.core.files import at_home
from robustkd.core.launch import launched, several_were_started
from robustkd.core.surroundings import safe_children

_USAGE, _INTERRUPTED = 2, 130
_MOMENT = 3.0
"""Seconds in which torchrun ends a process after another one has failed."""

app = App(
    name="robustkd",
    help="Distil a small, accurate student from a teacher that you do not trust.",
    version_flags=["--version"],
    config=(from_files, check_whole),
    # `main` reports an interrupt like every other error.
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; report errors of the user as one line on stderr and an exit code."""
    errors = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    keep_freed_memory()
    words = [_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        with safe_children(), _quiet_unless_first():
            _check_alone(words)
            app(
                words,
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
    except CycloptsError as error:
        print_error(errors, f"{_described(error)} (see robustkd --help)")
        _end(_USAGE)
    except UsageError as error:
        print_error(errors, in_flags(str(error), app, words))
        _end(error.exit_code)
    except RobustKDError as error:
        print_error(errors, str(error))
        _end(error.exit_code)
    except (OSError, MemoryError, UnicodeError, RecursionError) as error:
        print_error(errors, told(error))
        _end(InputError.exit_code)
    except KeyboardInterrupt as stop:
        print_error(errors, str(stop) or "interrupted")
        _end(_INTERRUPTED)


def _described(error: CycloptsError) -> str:
    """Return the message of cyclopts in one line.

    If a flag is missing, a flag that does not exist is named as well, since it is often the cause;
    if its value is missing, the word in the place of the value that was taken for a flag.
    """
    line = " ".join(str(error).split())
    if not isinstance(error, MissingArgumentError):
        return line
    left = error.unused_tokens or []
    known = _known_flags(error)
    unknown = [word for word in left if word.startswith("-") and _flag(word) not in known]
    for before, word in pairwise(left):
        if word in unknown and error.argument is not None and before in error.argument.names:
            how = "A value that begins with a dash follows an equals sign"
            return f"{line} {how}: {before}={word}."
    unknown = [word for word in unknown if word.startswith("--") and word not in line]
    return f"{line} Unknown option: {unknown[0]}." if unknown else line


def _known_flags(error: CycloptsError) -> set[str]:
    """Return the names of the flags of the command that was called, ``--no-`` included."""
    command = app
    for name in error.command_chain or ():
        command = command[name]
    arguments = command.assemble_argument_collection()
    return {name for argument in arguments for name in argument.names}


def _flag(word: str) -> str:
    """Return the flag in a word such as ``--epochs=3`` or ``--set.cap``."""
    return re.split("[=.]", word, maxsplit=1)[0]


def _end(code: int) -> NoReturn:
    """End the process after an error.

    One of several processes ends at once. Otherwise it would leave their group in an orderly way
    first, and on GPUs wait there for the others, which wait for it.
    """
    if several_were_started():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _quiet_unless_first() -> Iterator[None]:
    """Let only the first of several processes print results and progress.

    An error is printed by each of them that still runs a moment later: what concerns all of them,
    such as an unknown name, is the message of the first one, after which torchrun ends the others.
    """
    if launched().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except KeyboardInterrupt:
            os._exit(_INTERRUPTED)
        except Exception:
            time.sleep(_MOMENT)
            raise


def _check_alone(words: Sequence[str]) -> None:
    """Check that the command is not started several times, unless it is ``distill``.

    Raises:
        UsageError: If there are several processes.
    """
    launch = launched()
    if launch.several and words[:1] != ["distill"]:
        raise UsageError(
            f"there are {launch.count} processes; expected one for this command, since several "
            "work together only in distill: start it without torchrun"
        )


def _at_home(word: str) -> str:
    """Return a word of the command line with the home folder in place of a quoted ``~``."""
    flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{sign}{at_home(value)}"


def print_error(console: Console, message: str) -> None:
    """Print an error message.

    In a terminal, lines are wrapped at words, and advice (a last clause that does not begin with
    "expected") has a line of its own. Elsewhere, such as in a log, the message is one line.

    Args:
        console: Console for errors.
        message: Message; characters that control a terminal are escaped.
    """
    fact, _, advice = message.rpartition("; ")
    alone = console.is_terminal and fact and not advice.startswith("expected")
    lines = [f"robustkd: {fact}", f"  {advice}"] if alone else [f"robustkd: {message}"]
    for line in lines:
        console.print(printable(line), soft_wrap=not console.is_terminal)
