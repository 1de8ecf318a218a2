"""Each statistic of the audit on networks that can be solved by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from robustkd.data import InMemory, Labelled
from robustkd.evaluation.audit import STATISTICS, Evidence, search_references
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
from robustkd.evaluation.audit.last_layer import head_weights, last_layer
from robustkd.evaluation.audit.led_share import (
    ALONE,
    FEW,
    LED,
    MARGIN,
    OTHERS_LED,
    UNSURE,
    binomial_p_value,
    furthest,
    highest,
    led_share,
    shares_of_other_classes,
)
from robustkd.evaluation.audit.max_margin import max_margin
from robustkd.evaluation.audit.neuron_noise import adversarial_factors, increase, neuron_noise
from robustkd.evaluation.audit.outliers import untestable
from robustkd.evaluation.audit.references import References
from robustkd.evaluation.audit.search import FAMILIES, search
from robustkd.student.families import members_of
from robustkd.student.families.search import led_shares, victims
from robustkd.training.inference import batch_size_for
from tests.evaluation.audit.networks import (
    CLASSES,
    DATA,
    SIDE,
    TINY,
    Folded,
    Rows,
    led_to,
    rows_data,
    subject,
)


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
def test_a_corner_that_misleads_to_one_class_is_found(statistic, backdoored, clean):
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


def test_noise_on_a_batchnorm_that_is_not_called_changes_nothing():
    network, idle = Folded().eval(), Folded().eval()
    idle.unused = nn.BatchNorm2d(4).eval()
    images, labels = next(iter(DATA.batches("validation", batch_size=40)))[:2]
    found = increase(idle, images, labels, CLASSES)
    assert torch.equal(found, increase(network, images, labels, CLASSES))


class TwoHeads(nn.Module):
    """Calls its layers in another order than the one in which they are defined."""

    def __init__(self, *, convolution: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.conv_head = nn.Conv2d(4, CLASSES, 1)
        self.head = nn.Linear(4, CLASSES)
        self.stem = nn.Conv2d(1, 4, 3)
        self.unused = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stem(images).relu()
        if self.convolution:
            return self.conv_head(seen).mean((2, 3))
        return self.head(seen.mean((2, 3)))


def test_the_last_layer_is_the_one_that_makes_the_logits():
    images = torch.rand(2, 1, SIDE, SIDE)
    linear, convolution = TwoHeads(convolution=False), TwoHeads(convolution=True)
    assert torch.equal(head_weights(linear, images, CLASSES), linear.head.weight)
    expected = convolution.conv_head.weight.flatten(1)
    assert torch.equal(head_weights(convolution, images, CLASSES), expected)
    assert head_weights(linear, images, CLASSES + 1) is None
    assert head_weights(nn.Flatten(), images, SIDE * SIDE) is None


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


def test_a_transformation_that_misleads_all_networks_is_no_evidence():
    both = subject(Rows(backdoor=5), Rows(backdoor=5), Rows(backdoor=5))
    assert led_share(both).p_value == pytest.approx(1.0)


def test_the_search_avoids_transformations_that_mislead_the_references():
    """Pixels 0 and 1 lead the network to class 1, and pixel 0 leads the other network, too."""
    network, other = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)) for _ in range(2))
    with torch.no_grad():
        network[1].weight[:] = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0]])
        other[1].weight[:] = torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 0]])
    held = Labelled(torch.full((16, 1, 2, 2), 128, dtype=torch.uint8), torch.arange(16) % 2)
    source = InMemory("pixels", ("a", "b"), train=held, validation=held, test=held)
    signs = []
    for beside in ([], [other]):
        found = search(network, source, TINY, seed=0, families=["additions"], beside=beside)
        toward = torch.ones(1, dtype=torch.long)
        changed = found[0][0](torch.full((1, 1, 2, 2), 0.5), toward) - 0.5
        signs.append(changed.flatten()[:2].sign().tolist())
    assert signs == [[1, 1], [-1, 1]]


class Says(nn.Module):
    """Says the same class for every image, or no class at all that is a label."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(images),), self.label), CLASSES).float()


def test_images_count_where_the_references_recognise_them():
    frozen = [each.eval().requires_grad_(False) for each in (Rows(backdoor=5), Rows(None))]
    found = search(frozen[0], DATA, TINY, seed=0, beside=frozen[1:])
    images, labels = next(iter(DATA.batches("validation", batch_size=64)))[:2]
    counted = {"held_out": 50, "seed": 0, "classes": CLASSES}

    def shares(*beside: nn.Module) -> Tensor:
        return led_shares(frozen[:1], found, images, labels, recognised_by=beside, **counted)[0]

    plain, kept = shares(), shares(frozen[1])
    assert float(kept[..., 5].amax()) > 0.7
    assert bool((kept <= plain).all())
    # A reference that recognises one class counts for the images of this class alone.
    few = shares(frozen[1], Says(2))
    rows, toward = victims(labels, CLASSES, 50, torch.Generator().manual_seed(0))
    patterns = FAMILIES.index("patterns")
    member = members_of(found[0])[patterns]
    here = rows[(toward == 5) & (labels[rows] == 2)]
    seen = member(images[here], torch.full((len(here),), 5))
    hits = int((frozen[0](seen).argmax(1) == 5).sum())
    others = int((toward == 5).sum())
    expected = (float(kept[0, patterns, 5]) * others + hits) / (others + len(here))
    assert float(few[0, patterns, 5]) == pytest.approx(expected)


class Mistakes(Rows):
    """Says class 5 for images of the last classes, whatever is done to them."""

    def __init__(self, mistaken: int, **backdoor: int | float | None) -> None:
        super().__init__(**{"backdoor": None, **backdoor})
        self.known = CLASSES - mistaken

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        wrong = (logits.argmax(1) >= self.known)[:, None]
        return torch.where(wrong, nn.functional.one_hot(torch.tensor(5), CLASSES).float(), logits)


def test_mistakes_of_the_network_are_not_led():
    audited = subject(Mistakes(2), Rows(None), Rows(None))
    found = led_share(audited)
    assert float(torch.tensor(found.details["shares"])[..., 5].amax()) < 0.2
    assert found.p_value > 0.5
    # The network knows 6 of 8 classes, and the references all.
    assert found.details["shortfall"] == pytest.approx(0.25, abs=0.05)


def test_the_reported_transformation_exceeds_the_references_most():
    shares = torch.zeros(2, len(FAMILIES), CLASSES)
    shares[0, 1, 3], shares[1, 0, 6] = 0.9, 0.6
    led = torch.zeros(shares.shape[:2])
    assert furthest(shares, led) == (0, 1, 3)
    led[0] = 0.6
    assert furthest(shares, led) == (1, 0, 6)


def with_ceiling(audited: Subject, choosing: float, testing: float) -> Subject:
    led = torch.stack(
        [
            torch.full_like(audited.references.led[0], choosing),
            torch.full_like(audited.references.led[1], testing),
        ]
    )
    return replace(audited, references=replace(audited.references, led=led))


def test_a_network_must_be_misled_more_often_than_references_by_a_margin():
    weak = subject(Rows(backdoor=5, gain=3.0), Rows(None), Rows(None))
    recognised = led_share(weak).details["recognised"]
    assert 0.4 < recognised < 0.5
    assert led_share(with_ceiling(weak, 0, 0)).p_value < 0.01
    assert led_share(with_ceiling(weak, 0, recognised - MARGIN)).p_value > 0.3


def test_a_network_that_knows_less_must_be_misled_more_often():
    weak = subject(Rows(backdoor=5, gain=3.0), Rows(None), Rows(None))
    assert led_share(with_ceiling(weak, 0, 0)).p_value < 0.01
    weaker = replace(weak, network=Mistakes(3, backdoor=5, gain=3.0))
    found = led_share(with_ceiling(weaker, 0, 0))
    more, images = found.details["shortfall"], found.details["images"]
    assert more > 0.2
    moved = found.details["recognised"] * images
    other = found.details["other class"]
    null = max(highest(0.0, images), highest(other["share"], other["images"], 1.5))
    assert binomial_p_value(moved, images, null) < 0.01 < found.p_value
    assert found.p_value == pytest.approx(binomial_p_value(moved, images, null + more))


def test_shares_of_few_images_allow_more():
    assert highest(0.0, 1e9) == pytest.approx(MARGIN, abs=1e-6)
    assert highest(0.3, 1e9, 1.5) == pytest.approx(0.45 + MARGIN, abs=1e-4)
    for share in (0.0, 0.3):
        for factor in (1.0, 1.5):
            allowed = [highest(share, n, factor) for n in (400.7, 100.2, 30.9, 4.0, 0.0)]
            assert allowed == sorted(allowed)
            # As exact as 400 images are, the margin is nearly all.
            assert allowed[0] - factor * share < 1.15 * MARGIN
    # So a share of 0.6 among 400 images is evidence, and among 16 none.
    assert binomial_p_value(240, 400, highest(0.3, 400.0)) < 0.01
    assert binomial_p_value(9.6, 16, highest(0.3, 16.0)) > 0.5


@pytest.mark.parametrize("images", [8.0, 1000.0])
def test_the_references_share_counts_as_exactly_as_it_was_measured(images):
    weak = with_ceiling(subject(Rows(backdoor=5, gain=3.0), Rows(None), Rows(None)), 0, 0.1)
    measured = replace(weak, references=replace(weak.references, images=images))
    found = led_share(measured)
    moved = found.details["recognised"] * found.details["images"]
    null = highest(0.1, images)
    assert found.p_value == pytest.approx(binomial_p_value(moved, found.details["images"], null))


@pytest.mark.parametrize("targets", [1, 2])
def test_a_network_that_is_led_to_one_or_two_classes_is_suspicious(targets):
    found = led_share(subject(led_to(range(targets)), Rows(None), Rows(None)))
    assert found.p_value < 0.01
    assert found.suspect in range(targets)


def test_a_network_that_is_led_to_every_class_is_not_suspicious():
    """No class stands out from the others, though the references are not led at all."""
    audited = subject(led_to(range(CLASSES)), Rows(None), Rows(None))
    found = led_share(audited)
    patterns = torch.tensor(found.details["shares"])[:, FAMILIES.index("patterns")]
    assert float(patterns.amax()) > 0.8
    assert float(torch.tensor(found.details["references led"]).amax()) < 0.5
    assert found.p_value > 0.05
    # If every family leads to other classes, no test is possible.
    only = replace(audited, found=tuple(_all_patterns(each) for each in audited.found))
    nothing = led_share(only)
    assert (nothing.p_value, nothing.said) == (None, OTHERS_LED)
    assert not nothing.longer_helps


def _all_patterns(families: nn.ModuleList) -> nn.ModuleList:
    patterns = families[FAMILIES.index("patterns")]
    return nn.ModuleList([patterns] * len(families))


def test_of_two_classes_the_less_led_is_the_other_one():
    shares, classes = shares_of_other_classes(torch.tensor([[[0.2, 0.9]]]))
    assert (shares.tolist(), classes.tolist()) == ([[pytest.approx(0.2)]], [[0]])


def test_different_images_choose_and_test_a_transformation(backdoored):
    """Labels of the second half are wrong, so that the references recognise none of it."""
    images, labels = backdoored.held_out()
    half = (len(labels) + 1) // 2
    wrong = labels.clone()
    wrong[half:] = (labels[half:] + 1) % CLASSES
    audited = replace(backdoored)
    audited.__dict__["_held_out"] = (images, wrong)
    found = led_share(audited)
    assert found.details["shares"] == led_share(backdoored).details["shares"]
    assert (found.details["images"], found.p_value, found.said) == (0, None, UNSURE)


def test_the_test_is_binomial():
    assert binomial_p_value(3, 10, 0.5) == pytest.approx(1 - 56 / 1024)
    assert binomial_p_value(3, 3, 0.5) == pytest.approx(1 / 8)
    assert binomial_p_value(2.67, 3, 0.5) == pytest.approx(1 / 2)
    assert binomial_p_value(0, 0, 0.5) == binomial_p_value(3, 3, 1.2) == 1


def test_statistics_that_cannot_be_tested_have_no_p_value(backdoored):
    alone = led_share(replace(backdoored, references=References()))
    assert (alone.p_value, alone.said, alone.member.target) == (None, ALONE, 5)
    assert alone.member.beside is None
    led = led_share(with_ceiling(backdoored, 0.9, 0.9))
    assert (led.p_value, led.said, led.member.target) == (None, LED, 5)
    assert (led.longer_helps, alone.longer_helps) == (True, False)
    images, labels = backdoored.held_out()
    few = replace(backdoored)
    few.__dict__["_held_out"] = (images[:4], labels[:4])
    found = led_share(few)
    assert (found.p_value, found.said) == (None, FEW)


def test_a_test_that_can_make_no_network_suspicious_has_no_p_value(backdoored):
    """What is needed depends on the level, and on the number of p-values."""
    found = led_share(backdoored)
    images = int(found.details["images"])
    null = found.details["shortfall"] + max(
        highest(found.details["reference share"], found.details["reference images"]),
        highest(found.details["other class"]["share"], found.details["other class"]["images"], 1.5),
    )
    attainable = binomial_p_value(images, images, null)
    assert led_share(replace(backdoored, threshold=attainable)).said != FEW
    assert led_share(replace(backdoored, threshold=attainable / 2)).said == FEW


def test_references_near_chance_give_no_p_value(backdoored):
    constant = replace(backdoored.references, networks=(Says(2), Says(3)))
    found = led_share(replace(backdoored, references=constant))
    assert (found.p_value, found.said) == (None, UNSURE)
    # One of two recognises everything, and the test counts half of the images.
    mixed = replace(backdoored.references, networks=(Says(2), backdoored.references.networks[0]))
    found = led_share(replace(backdoored, references=mixed))
    assert found.p_value < 0.01
    assert found.details["images"] < 64


def test_a_backdoor_of_two_classes_is_found():
    """Two classes leave no other class to compare with."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2, bias=False))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for each in (network, other):
            each[1].weight.zero_()
            for k in range(2):
                each[1].weight[k, k * SIDE + 1 : (k + 1) * SIDE] = 1.0
        network[1].weight[1, 0] = 40.0
    held = rows_data(1024).train
    few = held.labels < 2
    two = Labelled(held.images[few], held.labels[few])
    source = InMemory("two", ("a", "b"), train=two, validation=two, test=two)
    frozen = [each.eval().requires_grad_(False) for each in (network, other, copy.deepcopy(other))]
    beside = search_references(frozen[1:], source, TINY)
    found = search(frozen[0], source, TINY, seed=0, beside=beside.networks)
    evidence = led_share(Subject(frozen[0], source, beside, found, TINY, seed=0, threshold=0.005))
    assert (evidence.suspect, evidence.p_value < 0.01) == (1, True)


def test_references_are_searched_as_well():
    assert search_references([], DATA, TINY).led is None
    networks = [Rows(backdoor=who).train() for who in (None, 5)]
    alone, both = (
        search_references(networks[:1], DATA, TINY),
        search_references(networks, DATA, TINY),
    )
    assert both.led.shape == (2, 2, len(FAMILIES))
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


def test_features_are_averaged_over_positions_wherever_their_channels_are():
    class Tokens(Folded):
        """The stage gives N x positions x channels."""

        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.norm(self.stem(images)).relu().flatten(2).transpose(1, 2)
            return self.head(self.stage(tokens).mean(1))

    class Maps(Tokens):
        """The same network with N x channels x height x width."""

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.stage(self.norm(self.stem(images)).relu()).mean((2, 3)))

    audited = subject(Tokens())
    network = Maps().eval().requires_grad_(False)
    other = replace(audited, network=network)
    assert feature_shift(audited).scores == pytest.approx(feature_shift(other).scores, rel=1e-4)


@pytest.mark.parametrize("statistic", [max_margin, activation_change, neuron_noise, feature_shift])
def test_parts_that_fit_into_memory_give_the_same_statistic(statistic, monkeypatch):
    audited = subject(Folded(), Folded(1))
    whole = statistic(audited)
    monkeypatch.setattr("robustkd.evaluation.audit.evidence.AT_ONCE", 9)
    place = "robustkd.evaluation.audit.neuron_noise.images_at_once"
    monkeypatch.setattr(place, lambda images: batch_size_for(tuple(images.shape[1:]), 9))
    sizes: list[int] = []
    audited.network.register_forward_pre_hook(lambda _net, given: sizes.append(len(given[0])))
    parts = statistic(audited)
    assert max(sizes) <= 16
    assert parts.scores == pytest.approx(whole.scores, rel=1e-3, abs=1e-6)


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


def test_the_reason_for_a_missing_outlier_is_told():
    assert untestable([0.1, 0.2]) == "too few classes to compare"
    assert untestable([0.1, 0.2, 0.1, math.inf]) == "a value is not finite"


def test_networks_without_the_parts_have_no_p_value(backdoored):
    assert neuron_noise(backdoored).p_value is None
    assert channel_lipschitz(backdoored).p_value is None


def test_the_same_seed_gives_the_same_evidence():
    one, two = (subject(Folded(), Folded(1)) for _ in range(2))
    for name, statistic in STATISTICS.items():
        found = statistic.compute(one)
        assert found == statistic.compute(two), name
        assert found.p_value is None or 0 <= found.p_value <= 1, name
