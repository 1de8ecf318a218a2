"""State of PyTorch that a caller may have changed, and that changes what a function computes.

Results should depend on the arguments alone. A public function that computes has the decorator
:func:`usual_state`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


def usual_state(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function, or an ``__init__``, compute the same in any state of PyTorch.

    Its calls are outside of the modes of :func:`usual_modes`. They create tensors of the type of
    the first argument if that is a network, see :func:`type_of`, and of float32 otherwise.

    >>> @usual_state
    ... def state() -> tuple[bool, torch.dtype]:
    ...     return torch.is_grad_enabled(), torch.get_default_dtype()
    >>> with torch.no_grad(), default_type(torch.float64):
    ...     state()
    (True, torch.float32)
    """
    name = next(iter(inspect.signature(function).parameters), "")

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # A module has no weights before its own __init__.
        network = None if name == "self" else args[0] if args else kwargs.get(name)
        with usual_modes(), default_type(type_of(network)):
            return function(*args, **kwargs)

    return called


@contextmanager
def usual_modes() -> Iterator[None]:
    """Leave ``no_grad``, ``inference_mode`` and ``autocast`` of a caller while the block lasts.

    Functions that train or search need gradients. If the caller has entered none of these modes,
    nothing happens.

    >>> with torch.no_grad(), usual_modes():
    ...     torch.is_grad_enabled()
    True
    """
    device = torch.accelerator.current_accelerator()
    kinds = {"cpu", "cpu" if device is None else device.type}
    entered = [kind for kind in sorted(kinds) if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in entered:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if entered:
            # The caller's autocast would go on with casts of weights that may have changed here.
            stack.callback(torch.clear_autocast_cache)
        yield


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors of a type while the block lasts."""
    before = torch.get_default_dtype()
    if before == dtype:  # the usual case, in which no other thread is disturbed
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def type_of(network: object) -> torch.dtype:
    """Return the type for tensors that are computed with a network.

    Returns:
        Float64 if the first weight of the network has this type; otherwise float32, also for half
        precision, for which there is autocast.
    """
    return torch.float64 if _first_type(network) == torch.float64 else torch.float32


def types_for(network: object) -> tuple[torch.dtype, ...]:
    """Return the types that images for a network may have.

    Returns:
        That of :func:`type_of`, and that of the first weight of the network if it is another one.
    """
    return tuple(dict.fromkeys((type_of(network), _first_type(network))))


def _first_type(network: object) -> torch.dtype:
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((each.dtype for each in weights if each.is_floating_point()), torch.float32)
