"""The contract of every defence of the table."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.teacher.defences.base import ONCE, Defence
from robustkd.teacher.defences.brief import brief
from robustkd.teacher.defences.registry import DEFENCES, find
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning
from robustkd.training.inference import accuracy_on
from tests.marks import slow_but
from tests.teacher.defences.networks import DIGITS, quick, trained
from tests.unlabelled import Unlabelled

KEPT = 0.1
"""Share of clean accuracy that a defence may cost in the few steps of these tests."""
PRUNERS = ("anp", "clp", "rnp")


@pytest.fixture(scope="module")
def network():
    return trained()


def logits(network):
    images = next(DIGITS.batches("test", batch_size=50)).images
    with torch.no_grad():
        return network(images)


class Counting:
    """Digits that count the training batches of a defence, which are augmented."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, name):
        return getattr(DIGITS, name)

    def batches(self, split, *, augment=None, **settings):
        for batch in DIGITS.batches(split, augment=augment, **settings):
            # Defences leave out a last batch that is not full.
            self.count += augment is not None and len(batch.labels) == settings["batch_size"]
            yield batch


@pytest.mark.parametrize("name", slow_but(DEFENCES.keys() - {"detox", "bti-dbf"}, DEFENCES))
def test_every_defence_keeps_the_contract(name, network):
    before, flags = copy.deepcopy(network.state_dict()), [p.training for p in network.modules()]
    state = torch.get_rng_state()
    defence = quick(find(name).defence)
    data = Counting()
    done = defence(network, data, seed=3)
    again = defence(network, DIGITS, seed=3)
    assert isinstance(defence, Defence)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [p.training for p in network.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert done.network is not network
    assert not any(module.training for module in done.network.modules())
    assert torch.equal(logits(done.network), logits(again.network))
    assert done.record == again.record == json.loads(json.dumps(done.record))
    assert done.record["accuracy_before"] == accuracy_on(network, DIGITS, "validation").value
    assert done.record["accuracy_after"] == accuracy_on(done.network, DIGITS, "validation").value
    # A first batch may show the shape of the images, and some defences may end early.
    expected = defence.batches(DIGITS.size("train"))
    early = expected if name in ("rnp", "detox") else 0
    assert -early <= data.count - expected <= 2


@pytest.mark.parametrize("name", list(DEFENCES))
def test_a_brief_form_takes_few_batches(name):
    short = brief(find(name).defence)
    assert type(short) is type(find(name).defence)
    assert short.batches(384) <= 60
    assert short.batches(384) < max(1, find(name).defence.batches(384))


def test_a_brief_form_shortens_trainings_and_what_is_marked():
    @dataclass(frozen=True)
    class Own:
        inner_steps: int = 9
        passes: int = field(default=7, metadata=ONCE)
        tuning: Tuning = FINE_TUNING

        def __call__(self, network, clean, *, seed):
            raise NotImplementedError

        def batches(self, images):
            return self.passes + self.tuning.batches(images)

    assert brief(Own()) == Own(passes=1, tuning=replace(FINE_TUNING, epochs=1))


@pytest.mark.parametrize("name", slow_but(("ft", "anp", "detox"), DEFENCES))
def test_accuracy_stays_within_its_budget(name, network):
    defence = quick(find(name).defence, epochs=12)
    record = defence(network, DIGITS, seed=0).record
    budget = defence.budget if name in PRUNERS else KEPT
    assert record["accuracy_after"] >= record["accuracy_before"] - budget


@pytest.mark.parametrize("name", slow_but(("ft", "anp"), ("ft", "anp", "sau")))
def test_images_without_labels_get_those_of_the_network(name, network):
    record = quick(find(name).defence, epochs=12)(network, Unlabelled(DIGITS), seed=0).record
    assert record["accuracy_after"] >= record["accuracy_before"] - KEPT


def test_every_row_has_a_summary_a_source_and_the_defaults_of_its_class():
    for name, row in DEFENCES.items():
        assert row.summary, name
        assert row.source, name
        assert type(row.defence).__dataclass_params__.frozen
        assert row.defence == type(row.defence)(), name


def test_an_unknown_name_is_refused_and_the_nearest_told():
    with pytest.raises(UsageError, match=re.escape("defence is 'ibau'; did you mean 'i-bau'?")):
        find("ibau")


@pytest.mark.parametrize("name", ["anp", "rnp"])
def test_pruning_refuses_a_network_without_batchnorm(name):
    bare = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(UsageError, match="has no BatchNorm with weights"):
        quick(find(name).defence)(bare, DIGITS, seed=0)


def test_clp_refuses_a_network_without_convolution():
    bare = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(UsageError, match="has no convolution"):
        find("clp").defence(bare, DIGITS, seed=0)


@pytest.mark.parametrize("name", ["fst", "fine-pruning", "bti-dbf"])
def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(name):
    bare = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.ReLU())
    with pytest.raises(UsageError, match="does not end in a linear layer"):
        quick(find(name).defence)(bare, DIGITS, seed=0)
