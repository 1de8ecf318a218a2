"""Conversion of docstrings and signatures for the site."""

from __future__ import annotations

import re
from typing import Any

from griffe import ExprSubscript, Extension, Function, Object, ParameterKind

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod|exc):`~?([\w.]+)`")
_MATH = re.compile(r":math:`([^`]*)`")
_MATH_BLOCK = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +.+|(?=\n\1 +\S)))*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*\n?)+", re.MULTILINE)
_CODE = re.compile(r"``([^`]+)``")


def markdown(text: str) -> str:
    r"""Convert roles and double backticks to code, and formulas and doctests to fenced blocks.

    >>> markdown("See :func:`~robustkd.distill`, or ``out``; :math:`x_1`.")
    'See `distill`, or `out`; `:::math x_1`.'
    """
    text = _CODE.sub(r"`\1`", text)
    text = _EXAMPLE.sub("Examples:", text)
    text = _DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
    text = _MATH_BLOCK.sub(_fence, text)
    text = _ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return _MATH.sub(r"`:::math \1`", text)


def _fence(found: re.Match[str]) -> str:
    lines = [line.strip() for line in found[2].splitlines()]
    return "\n".join(f"{found[1]}{line}" for line in ("", "```math", *filter(None, lines), "```"))


class Docstrings(Extension):
    """Griffe extension that converts every docstring before it is parsed.

    Keyword arguments ``**name: Unpack[Options]`` are shown as ``**name: Options``.
    """

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401 - what griffe passes
        """Convert the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_function(self, *, func: Function, **_: Any) -> None:  # noqa: ANN401 - what griffe passes
        """Replace ``Unpack[Options]`` by ``Options``, and leave out the default ``{}``."""
        for parameter in func.parameters:
            annotation = parameter.annotation
            if parameter.kind is ParameterKind.var_keyword and isinstance(
                annotation, ExprSubscript
            ):
                parameter.annotation, parameter.default = annotation.slice, None
