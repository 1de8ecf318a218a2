"""Entry point of the command and of ``python -m robustkd``, also under ``torchrun -m robustkd``."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command, and end quietly if it is interrupted while its modules are imported."""
    try:
        from robustkd.cli import main as run

        run()
    except KeyboardInterrupt:
        print("robustkd: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
