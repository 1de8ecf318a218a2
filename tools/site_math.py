"""Formulas of the site as MathML: written as TeX, shown by the browser without any script."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def block(source: str, *_: Any, **__: Any) -> str:  # noqa: ANN401 - what pymdownx passes
    """The formula of a fenced block called ``math``."""
    return f"<p class='formula'>{convert(source.strip(), display='block')}</p>"


def inline(source: str, *_: Any, **__: Any) -> str:  # noqa: ANN401 - what pymdownx passes
    """A formula within a line: backticks whose text begins with ``:::math``."""
    return str(convert(source.strip()))
