"""Stand-ins for the results of calls in a pickle, and for references to storages."""

from __future__ import annotations

from robustkd.teacher.untrusted import allowed_names
from robustkd.teacher.untrusted.contents import MOST_AXES, Refusal, checked_shape, quoted, shown
from robustkd.teacher.untrusted.values import Dead, Name, Ordered, StorageRef, TensorRef

_FLOATS = "save its weights as dense tensors of float32, before any quantisation"
_UNREAD = {
    "torch._utils _rebuild_qtensor": "quantised tensors",
    "torch._utils _rebuild_sparse_tensor": "sparse tensors",
    "torch._utils _rebuild_sparse_csr_tensor": "sparse tensors",
    "torch._utils _rebuild_nested_tensor": "nested tensors",
    "torch._utils _rebuild_tensor_v3": "tensors of a type such as float8",
    "torch._utils _rebuild_wrapper_subclass": "tensors of a class of their own",
}
"""Functions that build tensors of kinds that are not read."""


def misfit(what: str) -> Refusal:
    """Return the refusal of an invalid pickle."""
    return Refusal(f"has an invalid pickle: {what}")


def names_code(names: list[str]) -> Refusal:
    """Return the refusal of a pickle with forbidden names."""
    bad = (quoted(name.replace(" ", ".")) for name in names)
    return Refusal(
        f"names code that no state dict needs {shown(bad)}; save the state dict alone, "
        "as safetensors"
    )


def called(name: str, arguments: tuple[object, ...]) -> object:
    """Return the stand-in for the result of a call.

    Raises:
        Refusal: If the name may not be called, or the arguments of a tensor are not understood.
    """
    if name in allowed_names.TENSORS:
        return _tensor(arguments[:4], arguments[4:], newer=name.endswith("_v2"))
    if name == allowed_names.PARAMETER:
        return _parameter(arguments)
    if name == allowed_names.ORDERED:
        return _ordered(arguments)
    if name == allowed_names.DEFAULT and len(arguments) < 2:
        return {}
    if name in allowed_names.STORAGES:
        raise misfit(f"a call of {name.replace(' ', '.')}")
    if name in _UNREAD:
        raise Refusal(f"has {_UNREAD[name]}, which are not read; {_FLOATS}")
    if not allowed_names.may_be_called(name):
        raise names_code([name])
    return Dead(name, arguments)


def created(name: str, arguments: tuple[object, ...]) -> Dead:
    """Return the stand-in for a new object of a class.

    Raises:
        Refusal: If PyTorch never creates objects of the class in this way.
    """
    if name in allowed_names.LIVE:
        raise misfit(f"an object of {name.replace(' ', '.')}")
    return Dead(name, arguments)


def _ordered(arguments: tuple[object, ...]) -> Ordered:
    """Return an ordered dictionary; Python 2 passed the pairs as one list of lists."""
    made = Ordered()
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise misfit("a call of collections.OrderedDict")
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or not isinstance(pair[0], str):
            raise misfit("a call of collections.OrderedDict")
        made[pair[0]] = pair[1]
    return made


def _parameter(arguments: tuple[object, ...]) -> TensorRef:
    """Check the arguments ``data, requires_grad, hooks`` of a parameter, and return its data."""
    if not arguments or not isinstance(arguments[0], TensorRef):
        raise misfit("a parameter that is not a tensor")
    _check_gradient(arguments[1:])
    return arguments[0]


def _check_gradient(arguments: tuple[object, ...]) -> None:
    """Check the arguments ``requires_grad, hooks``; further arguments would change the values."""
    if len(arguments) > 2:
        raise Refusal(
            "has a tensor with further properties, such as the negative or the conjugate of its "
            "values; save it with resolve_neg().resolve_conj().clone()"
        )
    if len(arguments) < 2 or type(arguments[0]) is not bool:
        raise misfit("a tensor with wrong arguments")
    if not isinstance(arguments[1], Ordered) or arguments[1]:
        raise Refusal("has a tensor with backward hooks; save it with detach()")


def _tensor(view: tuple[object, ...], gradient: tuple[object, ...], *, newer: bool) -> TensorRef:
    """Check ``storage, start, shape, strides`` and the arguments for gradients of a tensor."""
    if len(view) < 4:
        raise misfit("a tensor with too few arguments")
    if newer or gradient:
        _check_gradient(gradient)
    storage, start, shape, strides = view
    if (
        not isinstance(storage, StorageRef)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
    ):
        raise misfit("a tensor with wrong arguments")
    (checked_start,) = checked_shape(storage.key, [start])
    # One more than the limit is enough to refuse a tuple that is as long as the file.
    sizes = checked_shape(storage.key, shape[: MOST_AXES + 1])
    steps = tuple(checked_shape(storage.key, [step])[0] for step in strides[: MOST_AXES + 1])
    if len(sizes) != len(steps):
        raise misfit("a tensor with more axes than strides, or fewer")
    return TensorRef(storage, checked_start, sizes, steps)


def storage(reference: object, *, legacy: bool) -> StorageRef | Name:
    """Check a reference ``("storage", type, key, device, length)``.

    Files in the legacy format have a sixth item, for views of storages, which must be None. They
    also have references ``("module", class, file, source)``, of which only the class is kept.

    Raises:
        Refusal: If it is something else.
    """
    if legacy and isinstance(reference, tuple) and len(reference) == 4:
        if reference[0] != "module" or not isinstance(reference[1], Name):
            raise misfit("a reference that is not a storage")
        return reference[1]
    if legacy and isinstance(reference, tuple) and len(reference) == 6:
        if reference[5] is not None:
            raise Refusal("has a view of a storage, as PyTorch before 0.4 wrote; save it again")
        reference = reference[:5]
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise misfit("a reference that is not a storage")
    _, kind, key, device, length = reference
    if not isinstance(kind, Name) or kind.name not in allowed_names.STORAGES:
        raise _unread_type(kind)
    if not isinstance(key, str) or not isinstance(device, str):
        raise misfit("a storage without a key or a device")
    if device.startswith("meta"):
        raise Refusal("has a tensor on the device 'meta', which has no values; save real weights")
    (checked_length,) = checked_shape(key, [length])
    return StorageRef(allowed_names.STORAGES[kind.name], key, checked_length)


def _unread_type(kind: object) -> Refusal:
    """Return the refusal of a storage whose values have a type that is not read."""
    module, _, name = kind.name.partition(" ") if isinstance(kind, Name) else ("", "", "")
    if module not in ("torch", "torch.storage") or not name.endswith("Storage"):
        return misfit("a storage of an unknown type")
    stated = name.removesuffix("Storage")
    if stated == "Untyped":
        what = "values of a type such as float8"
    elif stated.startswith(("QInt", "QUInt")):
        what = f"quantised values of the type {quoted(stated)}"
    else:
        what = f"values of the type {quoted(stated)}"
    return Refusal(f"has {what}, which are not read; {_FLOATS}")
