"""Inert values of :mod:`robustkd.teacher.untrusted.pickle_machine`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """A global name of the pickle; it is never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: ``length`` values of type ``dtype``, which are elsewhere in the file."""

    dtype: str
    key: str
    length: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor: a view of a storage, with all positions in values."""

    storage: StorageRef
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Ordered(dict[object, object]):
    """Stand-in for an OrderedDict, which may have attributes; they are dropped."""


class Items(list[object]):
    """Stand-in for a set: its items in the order of the file, which are never hashed."""


class Dead:
    """Stand-in for an object that is never built: the name, arguments and state of the object.

    Attributes:
        name: Name of the class.
        arguments: Arguments of the class.
        state: State that the object would be given; None if there is none.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[object, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: object = None
