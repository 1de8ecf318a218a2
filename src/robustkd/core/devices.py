"""The device of a model, the default device for training, and networks without values."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU if the model has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """Return the device for training: the accelerator if there is one, else the CPU.

    As in accelerate, the environment variable ``ACCELERATE_USE_CPU`` asks for the CPU.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Restore the global random generators of the CPU and of a CUDA device when the block ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def without_values() -> Iterator[None]:
    """Create tensors on the device ``meta`` while the block lasts, where they take no memory.

    Initialisation by random numbers is left out. On this device PyTorch would import its compiler
    for it, which takes longer than importing PyTorch.
    """
    with torch.device("meta"), _NoRandomNumbers():
        yield


@contextmanager
def without_parameters() -> Iterator[None]:
    """Move each parameter to the device ``meta`` as soon as a module has it, while the block lasts.

    All other tensors have values. This is for networks that need values while they are built, which
    :func:`without_values` does not provide.
    """
    own = threading.get_ident()

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != own or parameter is None:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # The hook may return another parameter, which PyTorch's type of it does not say.
    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        with _NoRandomNumbers():
            yield
    finally:
        hook.remove()


class _NoRandomNumbers(TorchFunctionMode):
    """Leave out the functions that fill a tensor with random numbers."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
