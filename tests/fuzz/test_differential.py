"""The differential fuzzer finds a difference where there is one, and none in a short run."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.fuzz import differential


@pytest.mark.parametrize("kind", ["archives", "legacy", "safetensors"])
def test_a_short_run_finds_nothing(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of mutated files
        ends = differential.fuzz(kind, 120, seed=3)
    assert ends.total() == 120
    assert ends["read by both, the same"] > 5
    assert ends["refused by both"] > 50


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.ones(2)},
        {"w": torch.zeros(2, dtype=torch.float64)},
        {"w": torch.zeros(2, 1)},
        {"v": torch.zeros(2)},
        {"w": torch.zeros(2), "v": torch.zeros(2)},
        {"w": -torch.zeros(2)},
    ],
)
def test_any_difference_is_seen(other):
    file = differential.saved({"w": torch.zeros(2)})
    assert differential.compare(file, lambda _: {"w": torch.zeros(2)}) == "read by both, the same"
    with pytest.raises(AssertionError):
        differential.compare(file, lambda _: other)
