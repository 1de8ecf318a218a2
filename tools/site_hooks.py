"""Hooks of the site: figures from outside docs/, and short code without line breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
FIGURES = {"assets/growth.svg": "benchmarks/results/growth/growth.svg"}
"""Files of the repository by their address on the site."""
_SHORT = re.compile(r"<code>([^<\s]{1,26}|--[\w-]{1,18} [^<\s]{1,12})</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures to the pages."""
    from mkdocs.structure.files import File

    for address, source in FIGURES.items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / source)))
    return files


def on_page_content(html: str, **_: Any) -> str:  # noqa: ANN401 - what mkdocs passes
    """Mark short code, such as a flag: browsers would break it after its hyphens."""
    return _SHORT.sub(r'<code class="short">\1</code>', html)
