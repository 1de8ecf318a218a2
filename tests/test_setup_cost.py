"""The measurement of poisoning and detoxification marks every image, and has a row for each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from robustkd.attacks.parts.poisoned_data import Poisoned

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import setup_cost

    monkeypatch.setattr(setup_cost, "IMAGES", 60)
    monkeypatch.setattr(setup_cost, "VALIDATION", 20)
    yield setup_cost
    del sys.modules["setup_cost"]


def test_every_image_receives_each_trigger_and_the_target(costs):
    clean = costs.images(40)
    for trigger in costs.triggers().values():
        poisoned = Poisoned(clean, trigger, target=0, rate=1.0)
        pairs = zip(*(s.batches("train", batch_size=128) for s in (poisoned, clean)), strict=True)
        for marked, batch in pairs:
            assert torch.equal(marked.images, trigger(batch.images))
            assert not marked.labels.any()


def test_a_row_tells_the_median_and_the_range(costs):
    taken = {"a tenth": [0.75, 0.75, 0.75], "all": [1.5, 2.0, 1.0], "clean": [0.5, 0.5, 0.5]}
    assert costs._poisoning_row("blend", taken) == {
        "trigger": "blend",
        "CPU_seconds,_a_tenth_is_poisoned": "0.25 (0.25 to 0.25)",
        "CPU_seconds,_all_are_poisoned": "1.00 (0.50 to 1.50)",
        "CPU_seconds_of_a_clean_pass": "0.50 (0.50 to 0.50)",
        "n": 3,
    }
    row = costs._detox_row("paper", ["a", "b"], [30.0, 10.0], [9.0, 3.0])
    assert row["share_of_30_epochs,_%"] == "10.0 (10.0 to 10.0)"


def test_passes_are_measured_in_turn(costs):
    found = costs.poison(costs.triggers()["blend"], costs.images(40), 2)
    assert {name: len(taken) for name, taken in found.items()} == {
        "a tenth": 2,
        "all": 2,
        "clean": 2,
    }


@pytest.mark.slow
def test_detoxifications_and_epochs_are_measured_in_turn(costs):
    found = costs.detox(["wrn-10-1", "wrn-10-1"], 1)
    assert {name: len(seconds) for name, seconds in found.items()} == {
        "paper": 1,
        "paper-perturbed": 1,
        "epoch": 1,
    }
