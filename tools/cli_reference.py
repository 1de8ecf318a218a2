"""Write docs/reference/cli.md from the help of the commands: ``python -m tools.cli_reference``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest.mock import patch

from robustkd.cli import app

PAGE = Path("docs/reference/cli.md")
_START = """\
# Command line

<!-- Written by `make docs` from the help of the commands. Do not edit. -->

Results go to stdout, progress and messages to stderr. `--json` prints results for programs.

| exit code | meaning |
| --- | --- |
| 0 | The command succeeded. |
| 1 | A training failed, or there is a bug. |
| 2 | Wrong usage: an unknown name, a value out of range, a missing extra. |
| 3 | An input was refused: a teacher's file, a folder of images, a run folder. |
| 4 | `audit` or `verify` found evidence of a backdoor. |
| 5 | `verify` or `export`: a threshold is missed, or the ONNX file predicts other classes. |
| 6 | `verify`: no threshold is missed, but the audit is inconclusive. |
| 130 | Interrupted. |

"""
_DOUBLE = re.compile(r"(?<!`)``(?!`)")
_CONTENTS = re.compile(r"## Table of Contents\n.*?(?=\*\*Commands\*\*)", re.DOTALL)
_ENTRY = re.compile(r"^\* `(?P<name>[^`]+)`: (?P<text>.*(?:\n +.*)*)", re.MULTILINE)
_NOTE = re.compile(r" ?\*{1,2}\[(required|choices: [^\]]*|default: [^\]]*)\]\*{1,2}")


def page() -> str:
    """Return the page for the current help of the commands."""
    # cyclopts uses the name of the running program in the help.
    with patch.object(sys, "argv", ["robustkd"]):
        text = app.generate_docs(output_format="markdown")
    text = text.replace("```console", "```text")
    text = _DOUBLE.sub("`", text)
    text = _CONTENTS.sub("", text.partition("\n")[2])
    return _START + _ENTRY.sub(_definition, text).strip() + "\n"


def _definition(entry: re.Match[str]) -> str:
    """Format one parameter as an entry of a definition list, with its notes after its name."""
    text = " ".join(entry["text"].split())
    notes = [re.sub("^default: (.*)", r"default `\1`", note) for note in _NOTE.findall(text)]
    head = ", ".join([f"`{entry['name']}`", *notes])
    return f"{head}\n:   {_NOTE.sub('', text)}\n"


def main() -> None:
    """Write the page of the working directory."""
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    after = page()
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(after, encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {'up to date' if before == after else 'changed'}\n")


if __name__ == "__main__":
    main()
