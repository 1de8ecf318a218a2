"""The command line reference is what the commands' help says."""

from __future__ import annotations

import re
from pathlib import Path

from robustkd import cli
from tools.cli_reference import PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_up_to_date():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_command_has_its_section_usage_and_flags():
    text = page()
    commands = re.findall(r"^## robustkd (\w+)$", text, re.MULTILINE)
    assert commands == [
        "demo",
        "audit",
        "distill",
        "verify",
        "evaluate",
        "export",
        "report",
        "bench",
        "attack",
        "list",
    ]
    assert set(commands) == {name for name in cli.app if not name.startswith("-")}
    for command in commands:
        assert f"```text\nrobustkd {command} " in text
    assert "\n`--epochs INT`, default `30`\n:   " in text
    assert "``" not in text.replace("```", "")


def test_help_names_flags_with_their_dashes():
    for section in re.split(r"^## ", page(), flags=re.MULTILINE)[1:]:
        flags = set(re.findall(r"^`.*--([\w-]+)", section, re.MULTILINE))
        choices = set(", ".join(re.findall(r"choices: (.*)", section)).split(", "))
        named = set(re.findall(r"`([\w-]+)`", section)) & flags - choices
        assert not named, section.partition("\n")[0]
