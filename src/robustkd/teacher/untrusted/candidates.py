"""Finding the state dicts in a checkpoint: every mapping of tensors, and every whole module.

No key has a special meaning. The caller selects the state dict that fits the architecture which
the user names.
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
        ignored: Other keys of the mappings that lead to it, and its own keys whose values are not
            tensors.
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
        raise Refusal(search.problem or _without_any(saved))
    kept = sorted(found, key=lambda place: -len(place.tensors))[:MOST]
    return [place.candidate() for place in found if any(place is other for other in kept)]


@dataclass(frozen=True, slots=True)
class _Place:
    """A state dict, and the mappings that lead to it with their keys."""

    tensors: Mapping[str, TensorRef]
    path: tuple[tuple[dict[object, object], str], ...]
    own: Mapping[object, object]

    def candidate(self) -> Candidate:
        ignored = [key for mapping, taken in self.path for key in mapping if key != taken]
        ignored += [key for key, value in self.own.items() if not isinstance(value, TensorRef)]
        keys = tuple(key for _, key in self.path)
        return Candidate(self.tensors, keys, tuple(map(_text, ignored)))


class _Search:
    """Search with a limited number of steps.

    Each value is visited once, except that a module is visited each time that it is used.

    Attributes:
        problem: Reason why a mapping of tensors is not a candidate; empty if there is no such
            mapping.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._seen: set[int] = set()
        self._steps = 0

    def within(
        self, value: object, path: tuple[tuple[dict[object, object], str], ...] = ()
    ) -> Iterator[_Place]:
        """Yield the state dicts in a value, beginning with the value itself."""
        if id(value) in self._seen or len(path) > _DEEPEST:
            return
        self._seen.add(id(value))
        tensors: dict[str, TensorRef] = {}
        if isinstance(value, Dead) and _is_module(value):
            self._module(value, "", tensors)
            if tensors:
                yield _Place(tensors, path, {})
        if not isinstance(value, dict):
            return
        tensors = {name: item for name, item in value.items() if isinstance(item, TensorRef)}
        if tensors and all(isinstance(name, str) for name in tensors):
            yield _Place(tensors, path, value)
        elif tensors:
            self.problem = self.problem or "has tensors whose names are not text"
        for key, item in value.items():
            if isinstance(item, dict | Dead) and isinstance(key, str) and _is_short(key):
                yield from self.within(item, (*path, (value, key)))

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
                    raise Refusal(f"has a module whose {quoted(prefix + name)} is not a tensor")
                self._step(prefix)
                found[prefix + name] = value
        for name, value in _entries(modules, prefix):
            if isinstance(value, Dead):
                self._module(value, f"{prefix}{name}.", found)
            elif value is not None:
                raise Refusal(f"has a module whose child {quoted(prefix + name)} is not a module")

    def _step(self, prefix: str) -> None:
        self._steps += 1
        deep = len(prefix) > LONGEST_NAME or prefix.count(".") > _DEEPEST_MODULE
        if self._steps > _MOST_STEPS or deep:
            raise Refusal("has a module with too many parts; save its state dict")

    def _names(self, value: object, prefix: str) -> set[str]:
        """Return the names in the stand-in for a set."""
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
            raise Refusal("has tensors whose names are not text")
        yield name, value


def _is_short(key: str) -> bool:
    return key.isprintable() and len(key) <= LONGEST_KEY


def _text(key: object) -> str:
    """Return a key as text, or the name of its type if its text may be as large as the file."""
    if isinstance(key, str | int | float | None):
        return str(key)
    return key.name if isinstance(key, Name) else type(key).__name__


def _is_array(value: object) -> bool:
    return isinstance(value, Dead) and value.name.startswith(("numpy.", "numpy "))


def _without_any(saved: object) -> str:
    if isinstance(saved, dict) and any(map(_is_array, saved.values())):
        return (
            "holds arrays of NumPy instead of tensors; save them as tensors: "
            "{name: torch.from_numpy(array)}"
        )
    if isinstance(saved, dict):
        keys = (quoted(_text(key)) for key in saved)
        return f"holds no state dict; it has {shown(keys)}"
    if isinstance(saved, Dead):
        name = quoted(saved.name.replace(" ", "."))
        return f"holds an object of the class {name} without tensors"
    kind = "a single tensor" if isinstance(saved, TensorRef) else f"a {type(saved).__name__}"
    return f"holds {kind} instead of a state dict"
