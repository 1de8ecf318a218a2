"""Trainings leave the Accelerators of a caller as they are, and are not affected by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from robustkd.core.errors import TrainingError
from robustkd.training.config import Precision
from robustkd.training.loop import fit
from tests.training.test_loop import DATA, learner, weights

STATES = (AcceleratorState, GradientState, PartialState)


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def trained(precision: Precision = "no") -> Tensor:
    made = learner()
    fit(made, DATA, epochs=1, precision=precision)
    return weights(made)


def test_a_training_leaves_no_shared_state():
    trained()
    assert [state._shared_state for state in STATES] == [{}, {}, {}]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_callers_accelerator_keeps_its_precision_and_accumulation(precision):
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    trained(precision)
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"


def test_a_failed_training_restores_the_state_too():
    own = Accelerator(mixed_precision="bf16")
    with pytest.raises(TrainingError):
        fit(learner(), DATA, epochs=1, lr=1e30, batch_size=4)
    assert own.mixed_precision == "bf16"


def test_a_callers_accelerator_does_not_change_the_training():
    expected = trained("bf16")
    own = Accelerator(mixed_precision="fp16", gradient_accumulation_steps=4)
    model = own.prepare(torch.nn.Linear(2, 2))
    with own.accumulate(model):
        assert not own.sync_gradients
        assert torch.equal(trained("bf16"), expected)
        assert not own.sync_gradients
