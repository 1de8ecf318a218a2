"""Docstrings, formulas and short code on the site."""

from __future__ import annotations

import pytest
import yaml

pytest.importorskip("griffe")
pytest.importorskip("latex2mathml")

from tests.docs.pages import ROOT
from tools import site_docstrings, site_hooks, site_math

DOCSTRING = r"""A loss.

.. math:: \mathrm{CE}(z', y)
    + \log 2

See :func:`~robustkd.student.distill` with ``x`` and :math:`x_1`.

Example:
    >>> 1 + 1
    2

>>> 2 + 2
4
"""


def test_docstrings_become_markdown():
    assert (
        site_docstrings.markdown(DOCSTRING)
        == r"""A loss.


```math
\mathrm{CE}(z', y)
+ \log 2
```

See `distill` with `x` and `:::math x_1`.

Examples:
    >>> 1 + 1
    2

```pycon
>>> 2 + 2
4
```
"""
    )


def test_formulas_are_mathml_in_a_line_and_in_a_block():
    assert site_math.inline("x_1").startswith("<math ")
    block = site_math.block("\\frac{1}{2}\n")
    assert block.startswith("<p class='formula'><math ")
    assert 'display="block"' in block
    assert "<mfrac>" in block


def test_only_short_code_is_kept_on_one_line():
    html = (
        "<code>--no-flip</code> <code>--clip-grad 1</code> <code>two words</code> "
        "<code>a.very.long.name.of.some.module</code>"
    )
    assert site_hooks.on_page_content(html) == html.replace("<code>--", '<code class="short">--')


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().replace("!!python/name:", "")
    nav = yaml.safe_load(text)["nav"]

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(pages(nav)) == there
    assert len(pages(nav)) == len(there)
