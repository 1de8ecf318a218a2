"""Modes of PyTorch that a caller may have entered, and that change what a function computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def usual_modes() -> Iterator[None]:
    """Leave ``no_grad``, ``inference_mode`` and ``autocast`` of a caller while the block lasts.

    Functions that train or search need gradients, and their results should depend on their
    arguments alone. If the caller has entered none of these modes, nothing happens. As a decorator,
    ``@usual_modes()`` does this for every call of a function.

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
