"""Stack machine of :mod:`robustkd.teacher.untrusted.read_pickle`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from robustkd.teacher.untrusted import allowed_names
from robustkd.teacher.untrusted.contents import Refusal, checked_shape, quoted

_DEEPEST = 200
_Instruction: TypeAlias = Callable[["Machine", object], None]


@dataclass(frozen=True, slots=True)
class Name:
    """A global name of the pickle; it is never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: a member of the archive with ``length`` values of type ``dtype``."""

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
    """Stand-in for an OrderedDict, the only object that may have attributes, which are dropped."""


class Machine:
    """Interpreter of pickle instructions on inert values."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[object, object] = {}
        self._storages: dict[str, StorageRef] = {}

    def follow(self, name: str, argument: object) -> None:
        """Execute one instruction.

        Raises:
            Refusal: If it does not fit the values on the stack.
        """
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _TUPLES:
            self._stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        else:
            _INSTRUCTIONS[name](self, argument)

    def result(self) -> object:
        """Return the value of the pickle."""
        if len(self._stack) != 1 or self._marks:
            raise _misfit("STOP")
        return self._stack[0]

    def _pop(self) -> object:
        if not self._stack:
            raise _misfit("an empty stack")
        return self._stack.pop()

    def _top(self) -> object:
        if not self._stack:
            raise _misfit("an empty stack")
        return self._stack[-1]

    def _mark(self, _: object) -> None:
        if len(self._marks) >= _DEEPEST:
            raise Refusal(f"has a pickle nested deeper than {_DEEPEST}")
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[object]:
        if not self._marks:
            raise _misfit("no MARK")
        found, self._stack = self._stack, self._marks.pop()
        return found

    def _tuple(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _append(self, _: object) -> None:
        self._extend([self._pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not list:
            raise _misfit("APPEND on something that is no list")
        target.extend(items)

    def _setitem(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _setitems(self, _: object) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise _misfit("SETITEM on something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple that repeats nested tuples takes exponential time.
            if not isinstance(key, str | int | float | None):
                raise _misfit("a key that is neither text nor a number")
            target[key] = value

    def _put(self, place: object) -> None:
        self._memo[place] = self._top()

    def _get(self, place: object) -> None:
        if place not in self._memo:
            raise _misfit("a memo that was never written")
        self._stack.append(self._memo[place])

    def _global(self, name: object) -> None:
        self._stack.append(Name(str(name)))

    def _reduce(self, _: object) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise _misfit("REDUCE")
        self._stack.append(_stand_in(called.name, arguments))

    def _build(self, _: object) -> None:
        state = self._pop()
        if not isinstance(self._top(), Ordered):
            raise _misfit("BUILD on something that is no OrderedDict")
        # _metadata has the versions of layers. Other attributes could replace methods of the dict.
        if not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise _misfit("an OrderedDict with attributes other than _metadata")

    def _persistent(self, _: object) -> None:
        storage = _storage(self._pop())
        # PyTorch uses the first reference to a storage and ignores contradictions in later ones.
        if self._storages.setdefault(storage.key, storage) != storage:
            raise Refusal(f"gives the storage {quoted(storage.key)} two types or lengths")
        self._stack.append(storage)

    def _nothing(self, _: object) -> None:
        """Do nothing, for PROTO and STOP."""


_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS: dict[str, _Instruction] = {
    "MARK": Machine._mark,
    "TUPLE": Machine._tuple,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._setitem,
    "SETITEMS": Machine._setitems,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
    "PROTO": Machine._nothing,
    "STOP": Machine._nothing,
}
OPERATIONS = frozenset({*_CONSTANTS, *_LITERALS, *_TUPLES, *_INSTRUCTIONS})
"""All supported instructions: those that torch.save writes."""


def _misfit(what: str) -> Refusal:
    return Refusal(f"has a pickle that makes no sense: {what}")


def _stand_in(name: str, arguments: tuple[object, ...]) -> object:
    """Return the stand-in for the result of a call, for the few names that may be called."""
    if name in allowed_names.TENSORS:
        return _tensor(arguments[:4], arguments[4:], newer=name.endswith("_v2"))
    if name == allowed_names.PARAMETER:
        return _parameter(arguments)
    if name == allowed_names.ORDERED and not arguments:
        return Ordered()
    if name in (allowed_names.COUNTER, allowed_names.SIZE, allowed_names.DEVICE):
        # Part of a scheduler or of the settings of a run; the values are not used.
        return None
    raise _misfit(f"a call of {name.replace(' ', '.')}")


def _parameter(arguments: tuple[object, ...]) -> TensorRef:
    """Check the arguments ``data, requires_grad, hooks`` of a parameter, and return its data."""
    if not arguments or not isinstance(arguments[0], TensorRef):
        raise _misfit("a parameter that is no tensor")
    _check_gradient(arguments[1:])
    return arguments[0]


def _check_gradient(arguments: tuple[object, ...]) -> None:
    """Check the arguments ``requires_grad, hooks``; any further ones would change the values."""
    if len(arguments) > 2:
        raise Refusal(
            "has a tensor with further properties, such as the negative or the conjugate of its "
            "values; save it with resolve_neg().resolve_conj().clone()"
        )
    if len(arguments) < 2 or type(arguments[0]) is not bool:
        raise _misfit("a tensor of the wrong arguments")
    if not isinstance(arguments[1], Ordered) or arguments[1]:
        raise Refusal("has a tensor with backward hooks; save it with detach()")


def _tensor(view: tuple[object, ...], gradient: tuple[object, ...], *, newer: bool) -> TensorRef:
    """Check ``storage, start, shape, strides`` and the arguments for gradients of a tensor."""
    if len(view) < 4:
        raise _misfit("a tensor of too few arguments")
    if newer or gradient:
        _check_gradient(gradient)
    storage, start, shape, strides = view
    if (
        not isinstance(storage, StorageRef)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
    ):
        raise _misfit("a tensor of the wrong arguments")
    (checked_start,) = checked_shape(storage.key, [start])
    sizes = checked_shape(storage.key, shape)
    steps = tuple(checked_shape(storage.key, [step])[0] for step in strides)
    if len(sizes) != len(steps):
        raise _misfit("a tensor with more axes than strides, or fewer")
    return TensorRef(storage, checked_start, sizes, steps)


def _storage(reference: object) -> StorageRef:
    """Check a reference ``("storage", type, key, device, length)``."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise _misfit("a reference that is no storage")
    _, kind, key, device, length = reference
    if not isinstance(kind, Name) or kind.name not in allowed_names.STORAGES:
        raise _misfit("a storage of no known type")
    if not isinstance(key, str) or not isinstance(device, str):
        raise _misfit("a storage without a key or a device")
    if device.startswith("meta"):
        raise Refusal("has a tensor on the device 'meta', which has no values; save real weights")
    (checked_length,) = checked_shape(key, [length])
    return StorageRef(allowed_names.STORAGES[kind.name], key, checked_length)
