"""Locating the state dict in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.teacher.untrusted.contents import Refusal, quoted, shown
from robustkd.teacher.untrusted.values import Dead, TensorRef

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "teacher",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
)
"""Common keys of a state dict; if a file has several, the first of this list is used."""

_DEEPEST = 4


def unwrap(saved: object) -> tuple[dict[str, TensorRef], tuple[str, ...], tuple[str, ...]]:
    """Return the tensors by name, the keys that lead to them, and the ignored keys.

    Raises:
        Refusal: If there is no state dict under a known key.
    """
    wrappers: list[str] = []
    ignored: list[str] = []
    while len(wrappers) <= _DEEPEST:
        if not isinstance(saved, Mapping):
            raise Refusal(f"holds {_kind(saved)} instead of a state dict")
        found = next((key for key in WRAPPERS if isinstance(saved.get(key), Mapping)), None)
        tensors = {name: value for name, value in saved.items() if isinstance(value, TensorRef)}
        others = [str(key) for key in saved if key not in tensors]
        if found is None and tensors:
            return _named(tensors), tuple(wrappers), (*ignored, *others)
        if found is None:
            raise Refusal(
                f"holds no state dict under any known key; it has {shown(map(quoted, others))}"
            )
        ignored += [str(key) for key in saved if key != found]
        wrappers.append(found)
        saved = saved[found]
    raise Refusal(f"wraps its state dict more than {_DEEPEST} times")


def _named(tensors: Mapping[object, TensorRef]) -> dict[str, TensorRef]:
    if not all(isinstance(name, str) for name in tensors):
        raise Refusal("has tensors whose names are no text")
    return {str(name): tensor for name, tensor in tensors.items()}


def _kind(saved: object) -> str:
    if isinstance(saved, Dead):
        return f"an object of the class {quoted(saved.name.replace(' ', '.'))}"
    return "a single tensor" if isinstance(saved, TensorRef) else f"a {type(saved).__name__}"
