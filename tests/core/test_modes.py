"""Functions compute the same in any mode of the caller."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.modes import usual_modes
from tests.modes import MODES


@usual_modes()
def gradient(weight: Tensor) -> Tensor:
    """The gradient of a sum of products, which autocast would round."""
    leaf = weight.clone().requires_grad_()
    (leaf @ leaf).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("mode", [nullcontext, *MODES.values()])
def test_a_decorated_function_does_not_depend_on_the_mode(mode: type[AbstractContextManager[Any]]):
    weight = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    expected = gradient(weight)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert torch.equal(gradient(weight), expected)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.is_autocast_enabled("cpu") is (mode is MODES["autocast"])


def test_autocast_sees_weights_that_were_changed_meanwhile():
    layer, images = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        layer(images)  # autocast keeps the rounded weights
        with usual_modes():
            nn.init.constant_(layer.weight, 1.0)
        assert layer(images).item() == 2.0
