"""Stack machine of :mod:`robustkd.teacher.untrusted.read_pickle`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from robustkd.teacher.untrusted.allowed_names import ORDERED, may_occur
from robustkd.teacher.untrusted.contents import Refusal, quoted
from robustkd.teacher.untrusted.rebuild import called, created, misfit, names_code, storage
from robustkd.teacher.untrusted.values import (
    Dead,
    Items,
    Name,
    Ordered,
    StorageRef,
    TensorRef,
)

_DEEPEST = 200
_MOST_PAIRS = 1_000_000
_LONGEST_NUMBER = 2048
_LONGEST_KEY = 32
_Instruction: TypeAlias = Callable[["Machine", object], None]


class Machine:
    """Interpreter of pickle instructions on inert values.

    Args:
        legacy: If True, references to storages are those of files before PyTorch 1.6.
    """

    def __init__(self, *, legacy: bool = False) -> None:
        self._legacy = legacy
        self._pairs = 0
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
            self._stack.append(_literal(name, argument))
        elif name in _TUPLES:
            self._stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        else:
            _INSTRUCTIONS[name](self, argument)

    def storages(self) -> dict[str, StorageRef]:
        """Return all storages by key, in the order of the first reference to each."""
        return self._storages

    def result(self) -> object:
        """Return the value of the pickle."""
        if len(self._stack) != 1 or self._marks:
            raise misfit("STOP")
        return self._stack[0]

    def _pop(self) -> object:
        if not self._stack:
            raise misfit("an empty stack")
        return self._stack.pop()

    def _top(self) -> object:
        if not self._stack:
            raise misfit("an empty stack")
        return self._stack[-1]

    def _mark(self, _: object) -> None:
        if len(self._marks) >= _DEEPEST:
            raise Refusal(f"has a pickle nested deeper than {_DEEPEST}")
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[object]:
        if not self._marks:
            raise misfit("no MARK")
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
        # Items that are added to a dead object are discarded.
        if isinstance(target, Dead):
            return
        if type(target) is not list:
            raise misfit("APPEND on something that is not a list")
        target.extend(items)

    def _additems(self, _: object) -> None:
        items = self._since_mark()
        target = self._top()
        if not isinstance(target, Items):
            raise misfit("ADDITEMS on something that is not a set")
        target.extend(items)

    def _frozenset(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(Items(items))

    def _setitem(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _setitems(self, _: object) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict | Dead) or len(items) % 2:
            raise misfit("SETITEM on something that is not a dict")
        if isinstance(target, Dead):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple that repeats nested tuples takes exponential time.
            if not isinstance(key, _KEYS) and not _is_plain_tuple(key):
                raise misfit("a key that is neither text nor a number")
            target[key] = value

    def _put(self, place: object) -> None:
        self._memo[place] = self._top()

    def _get(self, place: object) -> None:
        if place not in self._memo:
            raise misfit("a memo that was never written")
        self._stack.append(self._memo[place])

    def _memoize(self, _: object) -> None:
        self._put(len(self._memo))

    def _drop(self, _: object) -> None:
        self._pop()

    def _drop_since_mark(self, _: object) -> None:
        self._since_mark()

    def _duplicate(self, _: object) -> None:
        self._stack.append(self._top())

    def _global(self, name: object) -> None:
        if not may_occur(str(name)):
            raise names_code([str(name)])
        self._stack.append(Name(str(name)))

    def _stack_global(self, _: object) -> None:
        within, module = self._pop(), self._pop()
        if not isinstance(within, str) or not isinstance(module, str):
            raise misfit("STACK_GLOBAL")
        self._global(f"{module} {within}")

    def _reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise misfit("REDUCE")
        if function.name == ORDERED and len(arguments) == 1 and isinstance(arguments[0], list):
            # A file may use the same list many times.
            self._pairs += len(arguments[0])
        if self._pairs > _MOST_PAIRS:
            raise Refusal(f"has a pickle of more than {_MOST_PAIRS} pairs")
        self._stack.append(called(function.name, arguments))

    def _newobj(self, _: object) -> None:
        arguments, kind = self._pop(), self._pop()
        if not isinstance(kind, Name) or not isinstance(arguments, tuple):
            raise misfit("NEWOBJ")
        self._stack.append(created(kind.name, arguments))

    def _newobj_ex(self, _: object) -> None:
        if not isinstance(self._pop(), dict):
            raise misfit("NEWOBJ_EX")
        self._newobj(None)

    def _build(self, _: object) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Dead):
            if target.state is not None:
                raise misfit("BUILD twice")
            target.state = state
            return
        if not isinstance(target, Ordered):
            raise misfit("BUILD on something that has no state")
        # _metadata has the versions of layers. Other attributes could replace methods of the dict.
        if not isinstance(state, dict) or len(state) != 1 or "_metadata" not in state:
            raise misfit("an OrderedDict with attributes other than _metadata")

    def _persistent(self, _: object) -> None:
        found = storage(self._pop(), legacy=self._legacy)
        # PyTorch uses the first reference to a storage and ignores contradictions in later ones.
        if isinstance(found, StorageRef) and self._storages.setdefault(found.key, found) != found:
            raise Refusal(f"gives the storage {quoted(found.key)} two types or lengths")
        self._stack.append(found)

    def _nothing(self, _: object) -> None:
        """Do nothing, for PROTO, FRAME and STOP."""


_PLAIN = (str, int, float, bytes, Name, Dead, type(None))
_KEYS = (*_PLAIN, TensorRef)


def _is_plain_tuple(key: object) -> bool:
    if not isinstance(key, tuple) or len(key) > _LONGEST_KEY:
        return False
    return all(isinstance(item, _PLAIN) for item in key)


def _literal(name: str, argument: object) -> object:
    """Return the value of an instruction with a literal argument."""
    if isinstance(argument, int) and argument.bit_length() > _LONGEST_NUMBER:
        raise misfit(f"an integer of {argument.bit_length()} bits")
    # Python 2 wrote text and bytes in the same way, so their encoding is known for ASCII only.
    if name in _OF_PYTHON_2 and isinstance(argument, str) and not argument.isascii():
        return argument.encode("latin-1")
    return argument


_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Items,
}
_OF_PYTHON_2 = frozenset({"BINSTRING", "SHORT_BINSTRING"})
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"})
_TEXTS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", *_OF_PYTHON_2})
_BYTES = frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"})
_LITERALS = _NUMBERS | _TEXTS | _BYTES
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS: dict[str, _Instruction] = {
    "MARK": Machine._mark,
    "TUPLE": Machine._tuple,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._setitem,
    "SETITEMS": Machine._setitems,
    "ADDITEMS": Machine._additems,
    "FROZENSET": Machine._frozenset,
    "MEMOIZE": Machine._memoize,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_since_mark,
    "DUP": Machine._duplicate,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._newobj,
    "NEWOBJ_EX": Machine._newobj_ex,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
    "PROTO": Machine._nothing,
    "FRAME": Machine._nothing,
    "STOP": Machine._nothing,
}
OPERATIONS = frozenset({*_CONSTANTS, *_LITERALS, *_TUPLES, *_INSTRUCTIONS})
"""All supported instructions: those that torch.save writes, with protocols 2 to 5."""
