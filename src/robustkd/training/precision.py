"""Mixed precision, in a training and outside of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision: TypeAlias = Literal["no", "bf16", "fp16"]


@contextmanager
def mixed(precision: Precision, device: torch.device) -> Iterator[None]:
    """Mixed precision for whatever runs inside, weights that change in the block among it."""
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    # Without autocast's cache, which would keep the weights of the first step until the end.
    with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        yield


def new_accelerator(precision: Precision) -> Accelerator:
    """A new helper of Accelerate, in a precision that the process need not have begun with."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    try:
        return Accelerator(mixed_precision=precision)
    except ValueError:
        # The process keeps the precision of its first Accelerator and refuses any other.
        AcceleratorState._reset_state()
        return Accelerator(mixed_precision=precision)
