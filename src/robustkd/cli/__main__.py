"""Entry point of ``python -m robustkd.cli``."""

from robustkd.cli import main

main()
