"""YAML as plain data of a bounded size: text, numbers, truth values, lists, and mappings.

Everything is checked while the text is parsed, before any value is made: an alias cannot unfold to
more than the budgets allow, and no other type of YAML is ever constructed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import yaml
from yaml.events import AliasEvent, CollectionStartEvent, NodeEvent, ScalarEvent

from robustkd.core.errors import quoted

MOST_VALUES = 10_000
"""Most values in a text, each counted as often as it is referred to."""
MOST_DEPTH = 32
"""Most lists and mappings within each other."""
LONGEST_NUMBER = 100
"""Most characters of a number."""

_PLAIN = ("null", "bool", "int", "float", "str")
_MOST_SHOWN = 40


class RefusedError(ValueError):
    """The text is YAML, but not what we read; its words go on behind the name of a file."""


class _Extent(NamedTuple):
    """What a value takes of the budgets."""

    values: int
    depth: int


def parse(text: str, *, anchors: bool = False) -> object:
    """What a text holds, read as one document of plain data.

    Args:
        text: The YAML.
        anchors: Whether a value may be given a name, and repeated by it.

    Raises:
        RefusedError: It is larger or deeper than an honest file, says a key twice, or has
            something that is not plain data.
        ValueError: A number is none.
        yaml.YAMLError: It is no YAML.
    """
    loader = _Loader(text, anchors=anchors)
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
        """One value with everything in it; its place is a number, a key, or nothing."""
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
        """Count a value anew that was named before."""
        if event.anchor in self._extents:
            self._spend(event, self._extents[event.anchor])
        elif event.anchor in self.anchors:
            raise _refused(event, f"has {_brief(event.anchor)} within itself", "write it out")
        # YAML has its own words for a name that was never given.

    def _spend(self, event: NodeEvent, extent: _Extent) -> None:
        self._values += extent.values
        self._deepest = max(self._deepest, self._depth + extent.depth)
        if self._values > MOST_VALUES:
            raise _refused(event, f"has more than {MOST_VALUES:,} values", "make it smaller")
        if self._deepest > MOST_DEPTH:
            what = f"has more than {MOST_DEPTH} lists or mappings within each other"
            raise _refused(event, what, "make it flatter")


def _check_event(event: NodeEvent, *, anchors: bool) -> None:
    """Refuse what is not plain, whatever it would become."""
    if event.anchor is not None and not anchors:
        sign = "*" if isinstance(event, AliasEvent) else "&"
        raise _refused(event, f"has the name {_brief(sign + event.anchor)}", "write the value out")
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
        what = f"gives a value the type {_brief(event.tag)}"
        raise _refused(event, what, "leave the type out")


def _check_node(node: yaml.Node | None) -> None:
    """Refuse types that only the value shows, and keys that YAML would quietly take the last of."""
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
