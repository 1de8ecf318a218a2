"""The commands.

Nothing heavy is imported up here, so that ``--help`` answers at once.
"""

# In the order in which `robustkd --help` shows them.
from robustkd.cli import commands as commands
from robustkd.cli import distilling as distilling
from robustkd.cli.app import app, main

__all__ = ["app", "main"]
