"""Each statistic on networks that one can solve by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from robustkd.evaluation.audit import STATISTICS, Effort, Evidence, search_references
from robustkd.evaluation.audit.activation_change import (
    MOST,
    activation_change,
    constraints,
    smallest_change,
    violations,
)
from robustkd.evaluation.audit.channel_lipschitz import channel_lipschitz
from robustkd.evaluation.audit.evidence import Subject
from robustkd.evaluation.audit.feature_shift import feature_shift
from robustkd.evaluation.audit.last_layer import last_layer
from robustkd.evaluation.audit.led_share import compared, led_share
from robustkd.evaluation.audit.max_margin import max_margin
from robustkd.evaluation.audit.neuron_noise import adversarial_factors, increase, neuron_noise
from robustkd.evaluation.audit.search import FAMILIES, search
from robustkd.student.families.search import led_shares, victims
from tests.evaluation.audit.networks import CLASSES, SIDE, Folded, Rows, rows_data

TINY = Effort(
    strengths=(1.0, 0.5), steps=12, batch=16, held_out=12, references=0, margins=2, margin_steps=20
)
DATA = rows_data(128)


def subject(network: nn.Module, *references: nn.Module) -> Subject:
    frozen = [each.eval().requires_grad_(False) for each in (network, *references)]
    found = search(frozen[0], DATA, TINY, seed=0)
    beside = search_references(frozen[1:], DATA, TINY)
    return Subject(frozen[0], DATA, beside, found, TINY, seed=0)


@pytest.fixture(scope="module")
def backdoored() -> Subject:
    return subject(Rows(backdoor=5), Rows(None), Rows(None))


@pytest.fixture(scope="module")
def clean() -> Subject:
    return subject(Rows(None), Rows(None), Rows(None))


def test_the_search_finds_the_corner_and_success_is_counted_on_other_classes(backdoored):
    images, labels = backdoored.held_out()
    counted = {"held_out": 12, "seed": 0, "classes": CLASSES}
    shares = led_shares(
        [backdoored.network, Rows(None)], backdoored.found, images, labels, **counted
    )
    assert shares.shape == (2, 2, len(FAMILIES), CLASSES)
    assert bool(((shares >= 0) & (shares <= 1)).all())
    patterns = shares[:, 0, FAMILIES.index("patterns")]
    assert patterns[0, 5] > 0.7
    assert patterns[1, 5] < 0.5


def test_victims_are_never_of_the_class():
    labels = torch.tensor([0, 0, 1, 1, 1])
    rows, toward = victims(labels, 2, 3, torch.Generator().manual_seed(0))
    assert toward.tolist() == [0, 0, 0, 1, 1]
    assert bool((labels[rows] != toward).all())


@pytest.mark.parametrize("statistic", [led_share, max_margin, last_layer, activation_change])
def test_a_corner_that_leads_to_one_class_is_found(statistic, backdoored, clean):
    found = statistic(backdoored)
    assert found.suspect == 5
    assert found.p_value < 0.01
    assert statistic(clean).p_value > 0.05


def test_the_smallest_change_fulfils_all_constraints_and_a_general_solver_finds_none_smaller():
    random = np.random.default_rng(0)
    for trial in range(5):
        rows, needed = random.normal(size=(7, 12)), random.normal(size=7)
        found = smallest_change(rows, needed)
        assert (rows @ found >= needed - 1e-8).all(), trial
        fits = {"type": "ineq", "fun": lambda s, a=rows, c=needed: a @ s - c}
        other = minimize(lambda s: s @ s, np.zeros(12), constraints=[fits])
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(other.x), rel=1e-4)


def test_no_change_is_needed_or_none_suffices():
    assert smallest_change(np.eye(3), -np.ones(3)).tolist() == [0, 0, 0]
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert np.isinf(smallest_change(opposite, np.array([1.0, 1.0]))).all()


def test_the_changed_features_of_every_image_are_of_the_class():
    network = Folded().eval()
    audited = subject(network)
    needed = violations(network.head, audited)
    images, _ = audited.held_out()
    for k, (rows, bounds) in enumerate(constraints(network.head.weight.detach(), needed)):
        change = network.head.weight.double() @ torch.from_numpy(smallest_change(rows, bounds))
        changed = network(images).double() + change
        assert bool((changed.amax(1) - changed[:, k] < 1e-5).all())


def test_a_change_of_the_features_needs_a_linear_layer_and_not_too_many_classes(backdoored):
    convolution = nn.Sequential(nn.Conv2d(1, CLASSES, SIDE), nn.Flatten())
    assert activation_change(subject(convolution)).p_value is None
    many = replace(backdoored, data=replace(DATA, classes=tuple(map(str, range(MOST + 1)))))
    assert activation_change(many).said == f"more than {MOST} classes"


def test_what_leads_all_networks_is_no_inheritance():
    both = subject(Rows(backdoor=5), Rows(backdoor=5), Rows(backdoor=5))
    assert led_share(both).p_value in (None, pytest.approx(1.0))


def test_a_family_counts_at_the_strengths_that_a_search_does_not_lead_references_with():
    own = torch.zeros(2, len(FAMILIES), CLASSES)
    own[0, 1, 3] = 0.9
    own[1, 0, 6] = 0.6
    beside = torch.zeros(1, *own.shape)
    led = torch.zeros(own.shape[:2])
    found = compared(own, beside, led)
    assert (found.suspect, found.member.family, found.member.strength) == (3, FAMILIES[1], 0)
    led[0] = 0.6
    found = compared(own, beside, led)
    assert (found.suspect, found.member.family, found.member.strength) == (6, FAMILIES[0], 1)
    assert found.scores == pytest.approx(own[1, 0].tolist())
    # Fewer comparisons are corrected for.
    assert found.p_value == pytest.approx(compared(own[1:], beside[:, 1:], led[1:]).p_value)
    led[1] = 0.6
    found = compared(own, beside, led)
    assert (found.p_value, found.suspect) == (None, None)
    assert found.said == "the references are led as well"
    assert (found.member.target, found.member.family) == (3, FAMILIES[1])


def test_a_network_must_be_led_further_than_references_by_a_margin():
    own = torch.zeros(1, len(FAMILIES), CLASSES)
    own[0, 2, 4] = 0.5
    beside = torch.zeros(1, *own.shape)
    assert compared(own, beside, torch.full(own.shape[:2], 0.15)).p_value < 0.01
    assert compared(own, beside, torch.full(own.shape[:2], 0.25)).p_value == 1.0
    assert compared(own, beside).p_value < 0.01


def test_without_evidence_the_largest_excess_is_shown():
    own = torch.zeros(2, len(FAMILIES), CLASSES)
    own[0, 0, 1], own[1, 3, 6] = 0.05, 0.55
    beside, led = torch.zeros(1, *own.shape), torch.full(own.shape[:2], 0.28)
    found = compared(own, beside, led)
    assert found.p_value == 1.0
    assert (found.member.strength, found.member.family, found.suspect) == (1, FAMILIES[3], 6)
    assert found.said.startswith(f"{FAMILIES[3]}: 55% of the images")


def test_references_are_led_by_a_search_of_their_own():
    assert search_references([], DATA, TINY).led is None
    networks = [Rows(backdoor=who).train() for who in (None, 5)]
    alone, both = (
        search_references(networks[:1], DATA, TINY),
        search_references(networks, DATA, TINY),
    )
    assert both.led.shape == (2, len(FAMILIES))
    assert float((both.led - alone.led).amax()) > 0.3
    for given, kept in zip(networks, both.networks, strict=True):
        assert given.training
        assert given.head.weight.grad is None
        assert not kept.training
        assert not kept.head.weight.requires_grad


def test_features_move_by_a_common_vector(backdoored):
    # No stage: pixels go straight to the logits.
    assert feature_shift(backdoored) == Evidence(None, None, "no stage of the network was found")
    found = feature_shift(subject(Folded()))
    assert len(found.scores) == CLASSES
    assert all(0 <= score <= 1 + 1e-6 for score in found.scores)


def test_a_channel_with_a_large_filter_stands_out():
    network = Folded()
    assert channel_lipschitz(subject(copy.deepcopy(network))).p_value > 0.05
    with torch.no_grad():
        network.stem.weight[3] *= 100
    found = channel_lipschitz(subject(network))
    assert found.p_value < 0.05
    assert found.suspect is None


def test_noise_raises_the_loss_within_its_bound():
    network = Folded().eval().requires_grad_(False)
    images, labels = subject(network).held_out()
    weights, biases = adversarial_factors(network, images, labels)
    for factors in (*weights.values(), *biases.values()):
        assert bool(((factors >= 0.7 - 1e-6) & (factors <= 1.3 + 1e-6)).all())
    assert increase(network, images, labels, CLASSES).shape == (CLASSES,)
    assert bool((network.norm.weight == 1).all())


def test_networks_without_the_parts_have_no_p_value(backdoored):
    assert neuron_noise(backdoored).p_value is None
    assert channel_lipschitz(backdoored).p_value is None


def test_the_same_seed_gives_the_same_evidence():
    one, two = (subject(Folded(), Folded(1)) for _ in range(2))
    for name, statistic in STATISTICS.items():
        found = statistic.compute(one)
        assert found == statistic.compute(two), name
        assert found.p_value is None or 0 <= found.p_value <= 1, name
