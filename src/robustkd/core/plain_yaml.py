"""Parser of YAML as plain data of bounded size: text, numbers, booleans, lists and mappings.

Everything is checked while the text is parsed, before any value is created: an alias cannot expand
beyond the limits, and no other YAML type is ever constructed.

As in YAML 1.2, only ``true`` and ``false`` are booleans. The words on, off, yes and no, which YAML
1.1 reads as booleans, are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, cast

import yaml
from yaml.events import AliasEvent, CollectionStartEvent, NodeEvent, ScalarEvent

from robustkd.core.errors import quoted

MOST_VALUES = 10_000
"""Largest number of values in a text; an alias counts as the values that it repeats."""
MOST_DEPTH = 32
"""Largest nesting depth of lists and mappings."""
LONGEST_NUMBER = 100
"""Largest number of characters of a number."""

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_TRUTH = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_WITH_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)[eE][-+]?[0-9]+$")
_PLAIN = ("null", "bool", "int", "float", "str")
_MOST_SHOWN = 40


class RefusedError(ValueError):
    """The text is YAML that is not accepted; the message continues after the name of a file."""


class _Extent(NamedTuple):
    """Number of values and nesting depth of one value."""

    values: int
    depth: int


def parse(text: str, *, anchors: bool = False, exponents: bool = False) -> object:
    """Parse a text as one document of plain data.

    Args:
        text: The YAML.
        anchors: If True, anchors (``&name``) and aliases (``*name``) are allowed.
        exponents: If True, ``1e-3`` is a number as in YAML 1.2; if False, it is text as in YAML
            1.1, where a number with an exponent has a point and a sign: ``1.0e-3``.

    Raises:
        RefusedError: If the text exceeds a limit, repeats a key, or contains something that is not
            plain data.
        ValueError: If a number is malformed.
        yaml.YAMLError: If the text is not valid YAML.
    """
    loader = (_NumberLoader if exponents else _Loader)(text, anchors=anchors)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str, *, anchors: bool) -> None:
        super().__init__(text)
        self._may_repeat = anchors
        self._extents: dict[str, _Extent] = {}
        self._values = self._depth = self._deepest = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """Compose one value with all values in it."""
        peek: Callable[[], NodeEvent] = self.peek_event
        event = peek()
        _check_event(event, anchors=self._may_repeat)
        if isinstance(event, AliasEvent):
            self._repeat(event)
            return super().compose_node(parent, cast(int, index))
        values, deepest = self._values, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._spend(event, _Extent(1, 0))
        node = super().compose_node(parent, cast(int, index))
        self._depth -= 1
        if event.anchor is not None:
            extent = _Extent(self._values - values, self._deepest - self._depth)
            self._extents[event.anchor] = extent
        self._deepest = max(deepest, self._deepest)
        _check_node(node)
        return node

    def _repeat(self, event: AliasEvent) -> None:
        """Count the values that an alias repeats."""
        if event.anchor in self._extents:
            self._spend(event, self._extents[event.anchor])
        elif event.anchor in self.anchors:
            raise _refused(event, f"has {_brief(event.anchor)} within itself", "write it out")
        # PyYAML reports an alias without an anchor itself.

    def _spend(self, event: NodeEvent, extent: _Extent) -> None:
        self._values += extent.values
        self._deepest = max(self._deepest, self._depth + extent.depth)
        if self._values > MOST_VALUES:
            raise _refused(event, f"has more than {MOST_VALUES:,} values", "make it smaller")
        if self._deepest > MOST_DEPTH:
            what = f"has more than {MOST_DEPTH} nested lists or mappings"
            raise _refused(event, what, "make it flatter")


class _NumberLoader(_Loader):
    """Loader that reads ``1e-3`` as a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, _TRUTH, list("tTfF"))
_NumberLoader.add_implicit_resolver(_FLOAT, _WITH_EXPONENT, list("-+.0123456789"))


def _check_event(event: NodeEvent, *, anchors: bool) -> None:
    """Raise an error for an anchor, an alias or a tag that is not allowed."""
    if event.anchor is not None and not anchors:
        sign = "*" if isinstance(event, AliasEvent) else "&"
        raise _refused(event, f"has the name {_brief(sign + event.anchor)}", "write the value out")
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
        what = f"gives a value the type {_brief(event.tag)}"
        raise _refused(event, what, "leave the type out")


def _check_node(node: yaml.Node | None) -> None:
    """Raise an error for implicit types such as dates, and for repeated keys."""
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.rpartition(":")[2]
        if kind not in _PLAIN:
            what = f"has {_brief(node.value)}, which YAML reads as a {kind}"
            raise _refused(node, what, "put it in quotes")
        if kind in ("int", "float") and len(node.value) > LONGEST_NUMBER:
            what = f"has a number of {len(node.value):,} characters"
            raise _refused(node, what, "shorten it")
    elif isinstance(node, yaml.MappingNode):
        met = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "has a list or a mapping as a key", "use text or a number")
            spelt = (key.tag, key.value)
            if spelt in met:
                raise _refused(key, f"says {_brief(key.value)} twice", "leave one of them")
            met.add(spelt)


def _refused(place: NodeEvent | yaml.Node, what: str, advice: str) -> RefusedError:
    line = place.start_mark.line + 1 if place.start_mark else 1
    return RefusedError(f"{what}, in line {line}; {advice}")


def _brief(text: str | None) -> str:
    return quoted(text or "", _MOST_SHOWN)
