"""The type of new tensors, which ``torch.set_default_dtype`` of the user would change otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def default_type(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Create floating-point tensors of a type while a block or a decorated function lasts."""
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


def typed_as_network(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function create tensors of the type of the network that is its first argument."""
    name = next(iter(inspect.signature(function).parameters))

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        network = args[0] if args else kwargs.get(name)
        with default_type(type_of(network)):
            return function(*args, **kwargs)

    return called
