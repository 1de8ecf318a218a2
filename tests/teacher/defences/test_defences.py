"""The contract of every defence of the table."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence
from robustkd.teacher.defences.base import ONCE, Defence, Defended
from robustkd.teacher.defences.brief import brief
from robustkd.teacher.defences.cleaning import clean_network
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.registry import DEFENCES, DefenceRow, find
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning
from robustkd.training.inference import accuracy_on
from robustkd.training.precision import mixed
from tests.marks import slow_but
from tests.teacher.defences.networks import DIGITS, Small, quick, trained
from tests.unlabelled import Unlabelled
from tests.wrapped import Wrapped

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


class Counting(Wrapped):
    """Digits that count the training batches of a defence, which are augmented."""

    def __init__(self) -> None:
        super().__init__(DIGITS)
        self.count = 0

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


class Unusual(Small):
    """Has dropout, frozen constants, an integer parameter, and an extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.steps = nn.Parameter(torch.tensor(3), requires_grad=False)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images):
        return super().forward(self.dropout(images - self.mean))

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


@pytest.mark.parametrize("name", slow_but(DEFENCES.keys() - {"detox", "bti-dbf"}, DEFENCES))
def test_dropout_frozen_constants_integers_and_extra_states_are_handled(name):
    network, state = Unusual().eval(), torch.get_rng_state()
    defence = brief(quick(find(name).defence))
    done = defence(network, DIGITS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(logits(done.network), logits(defence(network, DIGITS, seed=0).network))
    torch.set_rng_state(state)
    cleaned = getattr(done.network, "teacher", done.network)  # that of the masks
    assert torch.equal(cleaned.mean, network.mean)
    if name != "detox":
        flags = [[p.requires_grad for p in each.parameters()] for each in (cleaned, network)]
        assert flags[0] == flags[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_all_weights_are_trained_if_all_are_frozen(frozen):
    network = Unusual().eval()
    if frozen:
        network.requires_grad_(False)
    cleaned = quick(find("ft").defence)(network, DIGITS, seed=0).network
    assert torch.equal(cleaned.mean, network.mean) != frozen
    assert not torch.equal(cleaned.head.weight, network.head.weight)


class Fixed(nn.Module):
    """Has its weights in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(256, 10))

    def forward(self, images):
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize("name", sorted(DEFENCES.keys() - {"detox"}))
def test_a_network_without_weights_to_train_is_refused(name):
    with pytest.raises(UsageError, match=r"^Fixed has no parameters of floating point"):
        find(name).defence(Fixed(), DIGITS, seed=0)


def computed(make, *names):
    """A small network some of whose layers compute their weight."""
    network = Small()
    for name in names:
        make(getattr(network, name), "weight")
    return network.eval()


NORMALISED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    lambda layer, name: prune.random_unstructured(layer, name, amount=0.5),
]


@pytest.mark.parametrize("make", NORMALISED)
@pytest.mark.parametrize("name", ["fst", "fine-pruning"])
def test_a_classifier_whose_weight_is_computed_is_refused(name, make):
    network = computed(make, "head")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UsageError, match=r"^module 'head' computes its weight from other tensors"):
        find(name).defence(network, DIGITS, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_pruning_refuses_only_computed_weights_into_which_it_writes():
    network = computed(parametrizations.weight_norm, "conv1")
    assert find("clp").defence(network, DIGITS, seed=0).record["channels"] == 40
    network.bn1 = nn.Identity()
    with pytest.raises(UsageError, match=r"^module 'conv1' computes its weight from other tensors"):
        find("clp").defence(network, DIGITS, seed=0)
    with pytest.raises(UsageError, match=r"^module 'bn2' computes its weight from other tensors"):
        find("anp").defence(computed(NORMALISED[2], "bn2"), DIGITS, seed=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_detox_measures_in_full_precision_and_trains_in_mixed_precision(
    precision, network, monkeypatch
):
    row = find("detox")
    short = replace(row.defence, steps=3, batch_size=50)
    monkeypatch.setitem(DEFENCES, "detox", replace(row, defence=short))
    use = NetworkDefence("detox", "teacher")
    done = clean_network(network, DIGITS, use, seed=0, precision=precision)
    assert {each.dtype for each in done.network.masks.parameters()} == {torch.float32}
    assert done.record["accuracy_after"] == accuracy_on(done.network, DIGITS, "validation").value
    made = detoxify(network, DIGITS, seed=0, precision=precision, **asdict(short)).teacher
    assert torch.equal(logits(done.network), logits(made))
    with mixed("bf16", torch.device("cpu")):
        again = detoxify(network, DIGITS, seed=0, precision=precision, **asdict(short)).teacher
    assert torch.equal(logits(again), logits(made))
    full = clean_network(network, DIGITS, use, seed=0).network
    assert not torch.equal(logits(full), logits(made))


def tuned(network: nn.Module) -> nn.Module:
    """Fine-tunes a network in place."""
    with torch.no_grad():
        next(network.parameters()).mul_(0.5)
    return network


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (lambda _network: None, "the defence own returns NoneType; expected robustkd"),
        (copy.deepcopy, "the defence own returns Small; expected robustkd"),
        (Defended, "the defence own returns the network that it was given"),
        (
            lambda network: Defended(copy.deepcopy(tuned(network))),
            "the defence own changes the network that it was given, which has to stay as it is",
        ),
    ],
)
def test_a_defence_of_a_user_that_returns_something_else_is_named(
    returned, text, network, monkeypatch
):
    @dataclass(frozen=True)
    class Own:
        def __call__(self, network, clean, *, seed):  # noqa: ARG002 (the protocol's)
            return returned(network)

        def batches(self, images):  # noqa: ARG002 (the protocol's)
            return 0

    monkeypatch.setitem(DEFENCES, "own", DefenceRow(Own(), "mine", "me"))
    with pytest.raises(UsageError, match=text):
        clean_network(network, DIGITS, NetworkDefence("own", "teacher"), seed=0)
