"""Modes of PyTorch that a caller may have entered."""

from __future__ import annotations

from functools import partial

import torch

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}
"""Functions that return a context, by name."""
