"""The command ``robustkd``, its error messages and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from rich.console import Console

from robustkd.cli.files import from_files
from robustkd.cli.flags import check_whole
from robustkd.core.errors import InputError, RobustKDError, printable, told
from robustkd.core.surroundings import safe_children

_USAGE, _INTERRUPTED = 2, 130

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
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        with safe_children():
            app(
                sys.argv[1:] if arguments is None else arguments,
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
    except CycloptsError as error:
        line = " ".join(str(error).split())
        errors.print(f"robustkd: {printable(line)} (see robustkd --help)")
        sys.exit(_USAGE)
    except RobustKDError as error:
        errors.print(f"robustkd: {printable(str(error))}")
        sys.exit(error.exit_code)
    except (OSError, MemoryError, UnicodeError, RecursionError) as error:
        errors.print(f"robustkd: {printable(told(error))}")
        sys.exit(InputError.exit_code)
    except KeyboardInterrupt as stop:
        errors.print(f"robustkd: {printable(str(stop)) or 'interrupted'}")
        sys.exit(_INTERRUPTED)
