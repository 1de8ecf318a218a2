"""The code blocks of README and of the pages that a newcomer follows."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLLOWED = [
    "README.md",
    "docs/index.md",
    "docs/install.md",
    "docs/quickstart.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs/guides").glob("*.md")),
    "docs/contributing.md",
    "docs/results/benchmark.md",
    "docs/results/performance.md",
]
"""Pages in the order in which they are read; later ones use the files of earlier ones."""

_BLOCK = re.compile(
    r"^(?: *(?P<run><!-- run -->)\n)?"
    r"(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path in the repository.
        language: What stands behind the fence.
        code: The text within.
        run: Whether ``<!-- run -->`` stands before it.
    """

    page: str
    language: str
    code: str
    run: bool

    def __str__(self) -> str:
        first = self.code.strip().splitlines()[0]
        return f"{self.page}: {first[:60]}"

    @property
    def file_name(self) -> str | None:
        """The file that the block is meant to be, if its first line says so."""
        named = re.match(r"# (\w+\.(?:py|yaml))\n", self.code)
        return named[1] if named else None

    def commands(self) -> list[list[str]]:
        """The commands of a shell block, each as its words, without comments."""
        joined = self.code.replace("\\\n", " ")
        return [
            words for line in joined.splitlines() if (words := shlex.split(line, comments=True))
        ]


def blocks(*languages: str) -> list[Block]:
    """All blocks of these languages, in the order in which they are read."""
    return [
        Block(page, found["language"], textwrap.dedent(found["code"]), found["run"] is not None)
        for page in FOLLOWED
        for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
        if found["language"] in languages
    ]
