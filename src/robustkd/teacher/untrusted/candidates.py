"""Finding the state dicts in a checkpoint: every mapping of tensors, and every whole module.

No key has a meaning here. Which of the state dicts is the network is decided by what fits the
architecture that the user names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from robustkd.teacher.untrusted.contents import LONGEST_NAME, MOST_TENSORS, Refusal, quoted, shown
from robustkd.teacher.untrusted.values import Dead, Items, Name, TensorRef

MOST = 8
"""Largest number of candidates; those with the most tensors are kept."""
LONGEST_KEY = 100
_DEEPEST = 5
_DEEPEST_MODULE = 100
_MOST_STEPS = 200_000
_PARTS = ("_parameters", "_buffers", "_modules")
_NOT_SAVED = "_non_persistent_buffers_set"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A state dict within a checkpoint.

    Attributes:
        tensors: The tensors by name, in the order of the file.
        keys: Keys that lead to it, outermost first.
        ignored: Other keys on the way, and keys within it of values that are no tensors.
    """

    tensors: Mapping[str, TensorRef]
    keys: tuple[str, ...]
    ignored: tuple[str, ...]


def candidates(saved: object) -> list[Candidate]:
    """Return the state dicts in the value of a pickle, in the order of the file.

    Raises:
        Refusal: If there is none, or the value is too large to be searched.
    """
    search = _Search()
    found = list(search.within(saved))
    if not found:
        raise Refusal(search.odd or _without_any(saved))
    kept = sorted(found, key=lambda place: -len(place.tensors))[:MOST]
    return [place.candidate() for place in found if any(place is other for other in kept)]


@dataclass(frozen=True, slots=True)
class _Place:
    """A state dict, and the mappings that lead to it with their keys."""

    tensors: Mapping[str, TensorRef]
    way: tuple[tuple[dict[object, object], str], ...]
    own: Mapping[object, object]

    def candidate(self) -> Candidate:
        beside = [key for mapping, taken in self.way for key in mapping if key != taken]
        beside += [key for key, value in self.own.items() if not isinstance(value, TensorRef)]
        return Candidate(self.tensors, tuple(key for _, key in self.way), tuple(map(_text, beside)))


class _Search:
    """A search of bounded length; each value is visited once, each module as often as it is used.

    Attributes:
        odd: Reason why a mapping of tensors is none of the candidates; empty if there is none.
    """

    def __init__(self) -> None:
        self.odd = ""
        self._seen: set[int] = set()
        self._steps = 0

    def within(
        self, value: object, way: tuple[tuple[dict[object, object], str], ...] = ()
    ) -> Iterator[_Place]:
        """Yield the state dicts in a value, itself first."""
        if id(value) in self._seen or len(way) > _DEEPEST:
            return
        self._seen.add(id(value))
        tensors: dict[str, TensorRef] = {}
        if isinstance(value, Dead) and _is_module(value):
            self._module(value, "", tensors)
            if tensors:
                yield _Place(tensors, way, {})
        if not isinstance(value, dict):
            return
        tensors = {name: item for name, item in value.items() if isinstance(item, TensorRef)}
        if tensors and all(isinstance(name, str) for name in tensors):
            yield _Place(tensors, way, value)
        elif tensors:
            self.odd = self.odd or "has tensors whose names are no text"
        for key, item in value.items():
            if isinstance(item, dict | Dead) and isinstance(key, str) and _is_short(key):
                yield from self.within(item, (*way, (value, key)))

    def _module(self, module: Dead, prefix: str, found: dict[str, TensorRef]) -> None:
        """Collect the tensors of a module by the names that its state dict would give them."""
        self._step(prefix)
        state = module.state if isinstance(module.state, dict) else {}
        parameters, buffers, modules = (state.get(part, {}) for part in _PARTS)
        skipped = self._names(state.get(_NOT_SAVED), prefix)
        for part in (parameters, buffers):
            for name, value in _entries(part, prefix):
                if value is None or (part is buffers and name in skipped):
                    continue
                if not isinstance(value, TensorRef):
                    raise Refusal(f"has a module whose tensor {quoted(prefix + name)} is none")
                self._step(prefix)
                found[prefix + name] = value
        for name, value in _entries(modules, prefix):
            if isinstance(value, Dead):
                self._module(value, f"{prefix}{name}.", found)
            elif value is not None:
                raise Refusal(f"has a module whose part {quoted(prefix + name)} is no module")

    def _step(self, prefix: str) -> None:
        self._steps += 1
        deep = len(prefix) > LONGEST_NAME or prefix.count(".") > _DEEPEST_MODULE
        if self._steps > _MOST_STEPS or deep:
            raise Refusal("has a module of too many parts; save its state dict")

    def _names(self, value: object, prefix: str) -> set[str]:
        """Return the names in the stand-in of a set."""
        if isinstance(value, Dead) and len(value.arguments) == 1:
            value = value.arguments[0]
        names: set[str] = set()
        for name in value if isinstance(value, Items | list) else ():
            self._step(prefix)
            if isinstance(name, str):
                names.add(name)
        return names


def _is_module(value: Dead) -> bool:
    return isinstance(value.state, dict) and any(part in value.state for part in _PARTS)


def _entries(part: object, prefix: str) -> Iterator[tuple[str, object]]:
    if not isinstance(part, dict) or len(part) > MOST_TENSORS:
        raise Refusal(f"has a module {quoted(prefix)} that is damaged")
    for name, value in part.items():
        if not isinstance(name, str):
            raise Refusal("has tensors whose names are no text")
        yield name, value


def _is_short(key: str) -> bool:
    return key.isprintable() and len(key) <= LONGEST_KEY


def _text(key: object) -> str:
    """Return a key as text; that of a dead value may be as large as the file."""
    if isinstance(key, str | int | float | None):
        return str(key)
    return key.name if isinstance(key, Name) else type(key).__name__


def _without_any(saved: object) -> str:
    if isinstance(saved, dict):
        keys = (quoted(_text(key)) for key in saved)
        return f"holds no state dict; it has {shown(keys)}"
    if isinstance(saved, Dead):
        name = quoted(saved.name.replace(" ", "."))
        return f"holds an object of the class {name} without tensors"
    kind = "a single tensor" if isinstance(saved, TensorRef) else f"a {type(saved).__name__}"
    return f"holds {kind} instead of a state dict"
