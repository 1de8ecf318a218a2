"""What the site shows of files outside docs/: the committed figure of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
FIGURES = {"assets/acc-asr.svg": "benchmarks/results/compact/acc-asr.svg"}
"""Address on the site -> file of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures to the pages."""
    from mkdocs.structure.files import File

    for address, source in FIGURES.items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / source)))
    return files
