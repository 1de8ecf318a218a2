"""The figures in README and docs are what the committed results say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from robustkd.core.errors import InputError
from tools.docs_figures import FIGURES, figure

ROOT = Path(__file__).parents[2]


def contents(svg: str) -> tuple[list[str], int]:
    """Texts and number of points: positions depend on the version of matplotlib."""
    root = ET.fromstring(svg)  # noqa: S314 (our own)
    texts = [text for each in root.iter() if (text := (each.text or "").strip())]
    return texts, svg.count("<use ")


@pytest.mark.parametrize("file", FIGURES)
def test_committed_figures_are_up_to_date(file):
    committed = (ROOT / file).read_text()
    assert contents(figure(file, ROOT)) == contents(committed), "run `make docs`"


def test_the_first_figure_shows_the_default_and_what_it_is_compared_with():
    svg = (ROOT / "docs/assets/acc-asr.svg").read_text()
    labels = re.findall(r">(student, no teacher|ordinary [^<]*|RobustKD [^<]*)</text>", svg)
    assert labels == ["student, no teacher", "ordinary student (mix)", "RobustKD (default)"]


@pytest.mark.parametrize("file", FIGURES)
def test_every_figure_is_shown(file):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(Path(file).name in page.read_text() for page in pages)


def test_missing_results_are_named(tmp_path):
    with pytest.raises(InputError, match=r"results\.json"):
        figure("docs/assets/acc-asr.svg", tmp_path)
