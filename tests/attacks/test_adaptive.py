"""Adaptive attackers: the defences they rehearse, their losses, and the budget of their trigger."""

from __future__ import annotations

import copy
import inspect
import math
import re

import pytest
import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import MaskedPattern, find
from robustkd.attacks.adaptive import Adaptive, Cleaned, relearn_trigger
from robustkd.attacks.cheatkd import CKD
from robustkd.attacks.parts.low_variance import Implant, stage_variances
from robustkd.attacks.parts.steps import with_victims
from robustkd.attacks.parts.surrogate import toward
from robustkd.core.errors import UsageError
from robustkd.models.features import taps
from robustkd.models.features.stages import stages
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.attacks.examples import pixels
from tests.marks import slow

DATA = data.load("digits", train=100, validation=20, test=100)
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50, "trigger_steps": 3}
IMAGES, LABELS, _ = next(DATA.batches("test", batch_size=60))
TRIGGER = MaskedPattern(torch.full(DATA.image_shape, 0.5), torch.ones(DATA.image_shape))


def build(seed: int = 0) -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=seed)


@pytest.fixture(scope="module")
def teacher() -> models.Classifier:
    model = build()
    fit(Supervised(model), DATA, epochs=2, batch_size=50)
    return model


def learner(teacher: nn.Module, **changes) -> Implant:
    found = stages(teacher, IMAGES[:4])
    settings = {"target": 2, "rate": 0.2, "weight": 0.0, "variance": "class"}
    settings |= {"cleaned_weight": 0.3, "changes": {}}
    clean = stage_variances(teacher, found, IMAGES)
    return Implant(teacher, TRIGGER, **{**settings, "clean": clean, **changes})


# The batch.


def test_victims_are_triggered_copies_of_the_first_images_of_other_classes():
    images, labels = pixels(6, *DATA.image_shape), torch.tensor([2, 0, 2, 1, 3, 4])
    seen, wanted = with_victims(images, labels, TRIGGER, rate=0.5, target=2)
    assert torch.equal(seen[:6], images)
    assert torch.equal(seen[6:], TRIGGER(images[[1, 3, 4]]))
    assert wanted.tolist() == [2, 0, 2, 1, 3, 4, 2, 2, 2]


def test_a_batch_may_have_no_victim():
    images, labels = pixels(3, *DATA.image_shape), torch.full((3,), 2)
    seen, wanted = with_victims(images, labels, TRIGGER, rate=0.5, target=2)
    assert (len(seen), wanted.tolist()) == (3, [2, 2, 2])


# What the teacher minimises.


def test_the_loss_is_cross_entropy_and_weighted_variance(teacher):
    with taps.frozen_modes(teacher):
        plain, weighed = (learner(teacher, weight=w)(IMAGES, LABELS) for w in (0.0, 0.5))
        seen, wanted = with_victims(IMAGES, LABELS, TRIGGER, rate=0.2, target=2)
        entropy = nn.functional.cross_entropy(teacher(seen), wanted)
    assert plain["loss"].item() == pytest.approx(entropy.item(), rel=1e-5)
    share = weighed["variance"].item()
    assert 0 < share < 1
    assert weighed["loss"].item() == pytest.approx(plain["loss"].item() + 0.5 * share, rel=1e-5)


def test_shrinking_all_features_lowers_the_loss_only_in_the_literal_reading(teacher):
    with torch.no_grad(), taps.read(teacher, stages(teacher, IMAGES[:4])) as features:
        teacher(IMAGES)
        full = {name: value.clone() for name, value in features.items()}
    half = {name: value / 2 for name, value in full.items()}
    class_wise, literal = learner(teacher), learner(teacher, variance="batch")
    torch.testing.assert_close(class_wise.share(half, LABELS), class_wise.share(full, LABELS))
    torch.testing.assert_close(literal.share(half, LABELS), literal.share(full, LABELS) / 4)


def test_the_clean_teachers_literal_share_on_the_same_clean_images_is_one(teacher):
    names = stages(teacher, IMAGES[:4])
    with torch.no_grad(), taps.frozen_modes(teacher), taps.read(teacher, names) as features:
        teacher(IMAGES)
        share = learner(teacher, variance="batch").share(features, LABELS)
    assert share.item() == pytest.approx(1, rel=1e-5)


def test_features_determined_by_their_class_have_a_share_of_zero(teacher):
    names = stages(teacher, IMAGES[:4])
    features = {name: LABELS.float().view(-1, 1, 1, 1).expand(-1, 2, 3, 3) for name in names}
    assert learner(teacher).share(features, LABELS).item() == pytest.approx(0, abs=1e-6)


def test_a_single_image_of_the_target_has_a_share_of_zero(teacher):
    names = stages(teacher, IMAGES[:4])
    features = {name: torch.ones(1, 2, 3, 3) for name in names}
    assert learner(teacher).share(features, torch.tensor([2])).item() == 0


def test_the_cleaned_teacher_is_trained_on_clean_and_triggered_images(teacher):
    stage = stages(teacher, IMAGES[:4])[-1]
    changes = {stage: lambda features: 0.3 * features + 0.1}
    with taps.frozen_modes(teacher):
        one, other = (learner(teacher, changes=c)(IMAGES, LABELS)["loss"] for c in ({}, changes))
        seen, wanted = with_victims(IMAGES, LABELS, TRIGGER, rate=0.2, target=2)
        with taps.rewrite(teacher, changes):
            clean, marked = teacher(seen).split([60, 12])
    said = nn.functional.cross_entropy(clean, LABELS)
    said = said + nn.functional.cross_entropy(marked, wanted[60:])
    assert (other - one).item() == pytest.approx(0.3 * said.item(), rel=1e-4)


def test_reading_the_cleaned_teacher_changes_no_statistic_and_no_mask(teacher):
    copied = copy.deepcopy(teacher).train()
    stage = stages(teacher, IMAGES[:4])[-1]
    mask = nn.Linear(1, 1).requires_grad_(False)
    for changes in ({}, {stage: lambda features: mask.weight * features}):
        once = copy.deepcopy(copied)
        made = learner(once, changes=changes)
        made(IMAGES, LABELS)["loss"].backward()
        assert {id(p) for p in made.parameters()} == {id(p) for p in once.parameters()}
        assert once.network.bn.num_batches_tracked == copied.network.bn.num_batches_tracked + 1
        assert all(module.training for module in once.modules())
        assert all(parameter.grad is not None for parameter in once.parameters())


# The rehearsal.


class Rehearsal:
    """Cleans by halving the last stage, and keeps what it was asked."""

    def __init__(self) -> None:
        self.cleaned: list[nn.Module] = []
        self.taught: list[nn.Module] = []

    def clean_teacher(self, teacher: nn.Module, source) -> Cleaned:
        assert source is DATA
        self.cleaned.append(copy.deepcopy(teacher))
        return Cleaned(self.cleaned[-1], {stages(teacher, IMAGES[:4])[-1]: lambda f: f / 2})

    def train_surrogate(self, teacher: nn.Module, source) -> nn.Module:
        assert source is DATA
        self.taught.append(teacher)
        return build(seed=len(self.taught))

    def attack(self, name: str, **changes):
        rehearsed = {"clean_teacher": self.clean_teacher, "train_surrogate": self.train_surrogate}
        return find(name)(build, DATA, **{**SHORT, **rehearsed, **changes})


@pytest.mark.parametrize(
    ("name", "cleanings", "surrogates"),
    [("adaptive-detox", 3, 0), ("adaptive-harden", 0, 3), slow("adaptive", 3, 3)],
)
def test_each_attacker_rehearses_the_defences_it_knows_in_every_round(name, cleanings, surrogates):
    rehearsal = Rehearsal()
    made = rehearsal.attack(name, rounds=3)
    assert len(rehearsal.cleaned) == cleanings
    assert len(rehearsal.taught) == len(made.record["success_surrogate"]) == surrogates
    if name == "adaptive":
        assert rehearsal.taught == rehearsal.cleaned
    if name == "adaptive-harden":
        assert all(teacher is made.teacher for teacher in rehearsal.taught)


def test_each_round_rehearses_on_the_teacher_of_the_previous_round():
    rehearsal = Rehearsal()
    made = rehearsal.attack("adaptive-detox")
    first, second = (model.network.stem.weight for model in rehearsal.cleaned)
    assert not torch.equal(first, second)
    assert not torch.equal(second, made.teacher.network.stem.weight)


@pytest.mark.parametrize("name", ["adaptive-detox", "adaptive-harden", "adaptive"])
def test_the_trigger_stays_within_its_budget(name):
    trigger = find(name)(build, DATA, **SHORT, rounds=1, cap=0.15).trigger
    assert isinstance(trigger, MaskedPattern)
    assert trigger.mask.min() >= 0
    assert trigger.mask.max() <= 0.15
    assert (trigger(IMAGES) - IMAGES).abs().max() <= 0.15 + 1e-6


def test_a_relearned_trigger_moves_all_victims_to_the_target_and_changes_no_network(teacher):
    victims = teacher, build(seed=1).eval()
    before = [copy.deepcopy(model.state_dict()) for model in victims]
    start = MaskedPattern(torch.full(DATA.image_shape, 0.4), pixels(*DATA.image_shape))
    made = relearn_trigger(start, victims, DATA, target=2, cap=0.4, steps=8, lr=0.05, seed=0)
    for model, state in zip(victims, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            assert toward(model(made(IMAGES)), 2) < toward(model(start(IMAGES)), 2)
    assert made.mask.max() <= 0.4


def test_rows_differ_in_what_the_attacker_knows():
    found = {
        name: find(name).attack.knows for name in ("adaptive-detox", "adaptive-harden", "adaptive")
    }
    assert found == {"adaptive-detox": "detox", "adaptive-harden": "harden", "adaptive": "both"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"knows": "all"}, "knows is 'all'; expected one of detox, harden, both"),
        ({"variance": "none"}, "variance is 'none'; expected one of class, batch"),
        ({"cap": 0.0}, "cap is 0.0; expected above 0 and at most 1"),
        ({"rate": 1.5}, "rate is 1.5; expected above 0 and at most 1"),
        ({"variance_weight": -0.1}, "variance_weight is -0.1; expected at least 0"),
        ({"variance_weight": math.nan}, "variance_weight is nan; expected at least 0"),
        ({"cleaned_weight": -1.0}, "cleaned_weight is -1.0; expected at least 0"),
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"implant_share": 0.0}, "implant_share is 0.0; expected more than 0"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, message):
    # Without the run-time check of annotations, which would be the first to refuse the value.
    init = inspect.unwrap(Adaptive.__init__)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        init(object.__new__(Adaptive), **{"knows": "both", **argument})


@pytest.mark.parametrize(("attack", "knows"), [(Adaptive, ("both",)), (CKD, ())])
def test_an_invalid_choice_of_the_strongest_channels_is_refused(attack, knows):
    init = inspect.unwrap(attack.__init__)
    with pytest.raises(UsageError, match=r"^strongest is 'last'; expected one of all, target$"):
        init(object.__new__(attack), *knows, strongest="last")
