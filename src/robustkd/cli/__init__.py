"""Command-line interface.

Nothing heavy is imported at the top of these modules, so that ``--help`` is fast.
"""

from robustkd.cli.app import app, main
from robustkd.cli.attacking import attack
from robustkd.cli.auditing import audit
from robustkd.cli.commands import bench, demo, evaluate, list_
from robustkd.cli.distilling import distill
from robustkd.cli.exporting import export
from robustkd.cli.reporting import report
from robustkd.cli.verifying import verify

__all__ = ["app", "main"]

for _command in (demo, audit, distill, verify, evaluate, export, report, bench, attack):
    app.command(_command)
app.command(list_, name="list")
