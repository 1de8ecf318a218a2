"""Formulas of the site, converted from TeX to MathML, which browsers show without scripts."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def block(source: str, *_: Any, **__: Any) -> str:  # noqa: ANN401 - what pymdownx passes
    """Convert the formula of a fenced block called ``math``."""
    return f"<p class='formula'>{convert(source.strip(), display='block')}</p>"


def inline(source: str, *_: Any, **__: Any) -> str:  # noqa: ANN401 - what pymdownx passes
    """Convert an inline formula: backticks whose text begins with ``:::math``."""
    return str(convert(source.strip()))
