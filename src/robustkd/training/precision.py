"""Mixed precision in the training loop and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from robustkd.training.config import Precision, check_precision

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def mixed(precision: Precision, device: torch.device) -> Iterator[None]:
    """Enable mixed precision while the block lasts; weights may change in the block.

    Raises:
        UsageError: If the precision is unknown.
    """
    check_precision(precision)
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    # Without the cache of autocast, which would keep the weights of the first step.
    with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        yield


@contextmanager
def new_accelerator(precision: Precision) -> Iterator[Accelerator]:
    """Yield an Accelerator that a caller's own Accelerator does not affect, and the reverse.

    All Accelerators of a process share their state: the precision of the first, and the number of
    steps over which gradients are accumulated. The state is put aside while the block lasts, except
    for the choice of the device, which is that of the caller.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [each._shared_state for each in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in states]
    AcceleratorState._shared_state.clear()
    GradientState._shared_state.clear()
    try:
        yield Accelerator(mixed_precision=precision)
    finally:
        # In place, since every Accelerator holds these dictionaries.
        for state, content in zip(states, before, strict=True):
            state.clear()
            state.update(content)


def prepared(
    accelerator: Accelerator, learner: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the learner on its device and the optimiser, as ``Accelerator.prepare`` does.

    ``prepare`` imports PyTorch's compiler and its distributed tensors, which takes longer than
    importing PyTorch. In full precision, it would only move the learner. The learner is not wrapped
    for several processes, because the loop adds up the gradients itself.
    """
    compiled = accelerator.state.dynamo_plugin.backend.value != "NO"  # asked for by the environment
    if accelerator.mixed_precision == "no" and not compiled:
        return learner.to(accelerator.device), optimiser
    model: nn.Module = accelerator.prepare_model(learner, evaluation_mode=True)
    return model, accelerator.prepare_optimizer(optimiser)
