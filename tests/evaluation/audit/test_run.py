"""The whole audit, its verdict, and its references."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import robustkd
from robustkd.core.errors import InputError, UsageError
from robustkd.evaluation.audit import (
    COUNTED,
    LEVEL,
    STATISTICS,
    Effort,
    Evidence,
    audit,
    make_references,
    run,
    search_references,
)
from robustkd.evaluation.audit.led_share import LED
from robustkd.evaluation.audit.logit_scale import Scaled, at_usual_scale
from robustkd.evaluation.audit.references import Limited, References, train_references
from robustkd.evaluation.audit.run import _trouble
from robustkd.evaluation.audit.search import held_out_images
from robustkd.evaluation.audit.verdict import combine
from robustkd.training.inference import accuracy_on
from robustkd.training.metrics import Proportion
from tests.evaluation.audit.networks import CLASSES, SIDE, Rows, rows_data
from tests.modes import MODES
from tests.unlabelled import Unlabelled

TINY = Effort(
    strengths=(1.0, 0.5), steps=12, batch=8, held_out=12, references=0, margins=2, margin_steps=20
)
DATA = rows_data()
BESIDE = search_references([Rows(None).requires_grad_(False) for _ in range(2)], DATA, TINY)


def of(**p_values: float | None) -> dict[str, Evidence]:
    return {
        name: Evidence(value, place, "") for place, (name, value) in enumerate(p_values.items())
    }


def test_the_verdict_is_that_of_the_corrected_p_value():
    both = frozenset({"a", "b"})
    found = combine(of(a=0.02, b=0.3), both, level=0.05)
    assert (found.word, found.suspect, found.p_value) == ("suspicious", 0, 0.04)
    assert combine(of(a=0.03, b=0.3), both, level=0.05).word == "inconclusive"
    assert combine(of(a=0.3, b=0.3), both, level=0.05).word == "no evidence"
    assert combine(of(a=0.3, b=0.001), frozenset({"a"}), level=0.05).word == "no evidence"
    # Two tests are made, though one has no result.
    found = combine(of(a=None, b=0.02), both, level=0.05)
    assert (found.word, found.suspect, found.p_value) == ("suspicious", 1, 0.04)
    assert combine(of(a=None, b=0.04), both, level=0.05).word == "inconclusive"


def test_trouble_makes_any_p_value_inconclusive():
    assert combine(of(a=0.9), frozenset("a"), trouble="x").word == "inconclusive"
    found = combine(of(a=0.001), frozenset("a"), trouble="x")
    assert (found.word, found.p_value, found.reason) == ("inconclusive", None, "x")
    nothing = combine(of(a=None), frozenset("a"))
    assert (nothing.word, nothing.reason) == ("inconclusive", "no statistic could be computed")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_the_caller_have_no_effect(mode):
    model, brief = Rows(backdoor=5), replace(TINY, steps=2, references=1, reference_images=60)
    expected = audit(model, DATA, effort=brief).record()
    with mode():
        found = audit(model, DATA, effort=brief).record()
        references = make_references(DATA, brief)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert not any(each.is_inference() for each in references.networks[0].parameters())


def test_a_backdoor_is_suspicious_and_names_its_class():
    model = Rows(backdoor=5).train()
    found = audit(model, DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word == "suspicious"
    assert found.suspected == "f"
    assert list(found.evidence) == list(STATISTICS)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    record = json.loads(json.dumps(found.record()))
    assert record["suspected_class"] == "f"
    assert record["evidence"]["led share"]["counts"]


def test_the_pictures_are_those_of_the_network_whose_verdict_counts(monkeypatch):
    """A teacher may look clean although its students have the backdoor."""
    for model, student in ((None, 5), (5, None)):
        monkeypatch.setattr(run, "probe_student", lambda *_, who=student, **__: Rows(who))
        found = audit(Rows(model), DATA, references=BESIDE, effort=TINY, probe=True)
        assert (found.verdict.word, found.suspected) == ("suspicious", "f")
        assert found.verdict.reason.startswith("probe student: ") == (student == 5)
        assert found.probe is not None
        alone = audit(Rows(5), DATA, references=BESIDE, effort=TINY, level=LEVEL / 2)
        assert found.pictures is not None
        assert alone.pictures is not None
        assert torch.equal(found.pictures.after, alone.pictures.after)


def test_the_pictures_are_those_of_the_statistic_that_decides():
    source = rows_data(128)
    beside = search_references([Rows(None), Rows(None)], source, TINY)
    found = audit(Rows(5), source, references=beside, effort=TINY)
    p_values = {name: found.evidence[name].p_value for name in COUNTED}
    assert found.verdict.reason == min(p_values, key=p_values.__getitem__)
    assert found.pictures is not None
    assert found.pictures.member == found.evidence[found.verdict.reason].member
    assert "tensor(" not in repr(found)  # which a notebook shows


class Knows(Rows):
    """Knows the first classes alone, and says class 0 for images of the others."""

    def __init__(self, known: int, backdoor: int | None) -> None:
        super().__init__(backdoor)
        with torch.no_grad():
            for k in range(known, CLASSES):
                row = slice(k * SIDE + 1, (k + 1) * SIDE)
                self.head.weight[0, row] = self.head.weight[k, row]
                self.head.weight[k, row] = 0


def test_a_network_without_a_backdoor_is_not_suspicious():
    found = audit(Rows(None), DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word != "suspicious"
    assert found.suspected is None


def test_a_network_at_chance_accuracy_is_inconclusive():
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    with torch.no_grad():
        blind[1].weight.zero_()
        blind[1].bias.zero_()
    found = audit(blind, DATA, references=References(), effort=TINY)
    assert found.verdict.word == "inconclusive"
    assert found.verdict.reason == "the model is right on only 12.5% of the validation images"


@pytest.mark.parametrize(("known", "usual"), [(7, True), (6, False)])
def test_a_network_that_knows_much_less_than_the_references_is_inconclusive(known, usual):
    """The references recognise all 8 classes, so that 6 of them are less than 80 %."""
    found = audit(Knows(known, backdoor=7), DATA, references=BESIDE, effort=TINY)
    assert (found.verdict.word == "suspicious") == usual
    if not usual:
        assert found.verdict.reason == (
            "the model is right on only 75.0% of the validation images, "
            "and a reference network on 100.0%"
        )


@pytest.mark.parametrize(("best", "named"), [(0.12, False), (0.9, True)])
def test_a_reference_is_named_where_it_is_the_scale(best, named):
    said = _trouble(Proportion(15, 100), [Proportion(round(100 * best), 100)], 10)
    assert said.startswith("the model is right on only 15.0% of the validation images")
    assert ("a reference network on 90.0%" in said) == named


def test_outputs_that_are_not_finite_on_transformed_images_are_inconclusive():
    class Overflowing(Rows):
        def forward(self, images):
            logits = super().forward(images)
            return logits.where((images[:, 0, 0, 0] == 0)[:, None], torch.nan)

    found = audit(Overflowing(5), DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word == "inconclusive"
    assert found.verdict.reason == (
        "the model cannot be searched: its outputs on transformed images are not finite"
    )


def test_gradients_that_are_not_finite_are_inconclusive():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_context, images):
            return images.clone()

        @staticmethod
        def backward(_context, gradient):
            return gradient * torch.where(torch.arange(SIDE) % 2 == 0, torch.nan, 1.0)

    class Hidden(Rows):
        def forward(self, images):
            return super().forward(Broken.apply(images))

    found = audit(Hidden(5), DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word == "inconclusive"
    assert found.verdict.reason == "the model cannot be searched: its gradients are not finite"


def test_a_network_with_a_part_that_passes_no_gradient_is_inconclusive():
    """As the layers of quantised networks, whose outputs have a graph and no gradient."""

    class Blocked(torch.autograd.Function):
        @staticmethod
        def forward(_context, images):
            return images.clone()

        @staticmethod
        def backward(_context, _gradient):
            return None

    class Quantised(Rows):
        def forward(self, images):
            return super().forward(Blocked.apply(images))

    found = audit(Quantised(5), DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word == "inconclusive"
    assert found.verdict.reason == "no gradient passes through the model, so it cannot be searched"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda logits: (logits, logits), "the model returns tuple; expected a tensor of logits"),
        (lambda logits: {"logits": logits}, "the model returns dict; expected a tensor of logits"),
        (lambda logits: logits.argmax(1), "the model maps 2 images to a tensor of shape (2,);"),
        (lambda logits: logits.long(), "the model returns numbers of type torch.int64; expected"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(changed, message):
    class Other(Rows):
        def forward(self, images):
            return changed(super().forward(images))

    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        audit(Other(None), DATA, references=BESIDE, effort=TINY)


@pytest.mark.parametrize("place", [0, 550])
def test_outputs_that_are_not_finite_on_one_image_are_refused(place):
    """The first batch has 256 images, and the statistics are computed on all."""
    many = rows_data(600)
    many.validation.images[place, 0, -1, -1] = 255

    class Breaks(Rows):
        def forward(self, images):
            marked = images[:, 0, -1, -1] > 0.99
            return super().forward(images).where(~marked[:, None], torch.nan)

    with pytest.raises(InputError, match=r"^the outputs of the model are not finite on the vali"):
        audit(Breaks(None), many, references=BESIDE, effort=replace(TINY, accuracy_images=1))


def test_a_model_in_half_precision_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match=r"^the model does not work with images of shape 2 x 1 x 8"
    ):
        audit(Rows(None).half(), DATA, references=BESIDE, effort=TINY)


@pytest.mark.parametrize("factor", [1e-6, 0.6, 1e3])
def test_the_scale_of_the_logits_does_not_hide_a_backdoor(factor):
    model = Rows(backdoor=5)
    with torch.no_grad():
        model.head.weight.mul_(factor)
    found = audit(model, DATA, references=BESIDE, effort=TINY)
    assert (found.verdict.word, found.suspected) == ("suspicious", "f")


def test_logits_are_scaled_like_those_of_references_beyond_a_factor_of_two():
    images, _ = held_out_images(DATA, TINY, torch.device("cpu"))
    plain = Rows(None)
    for factor in (0.6, 1.9):
        near = Scaled(plain, factor)
        assert at_usual_scale(near, [plain], images) is near
    for factor in (1e-30, 0.4, 2.5, 1e6):
        scaled = at_usual_scale(Scaled(plain, factor), [plain], images)
        torch.testing.assert_close(scaled(images), plain(images))
    assert at_usual_scale(near, [], images) is near


def test_a_network_that_hides_its_gradients_is_inconclusive():
    class Hidden(Rows):
        def forward(self, images):
            return super().forward(images).detach()

    found = audit(Hidden(5), DATA, references=BESIDE, effort=TINY)
    assert found.verdict.word == "inconclusive"
    assert found.verdict.reason == "no gradient passes through the model, so it cannot be searched"


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match=r"^level is 1.5; expected above 0 and below 1$"):
        audit(Rows(None), DATA, level=1.5)
    with pytest.raises(UsageError, match=r"^the model maps 2 images to a tensor of shape \(2, 3\)"):
        audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), DATA, references=References())
    for name, value in (("strengths", (0.5, 0.25)), ("steps", 6), ("batch", 16), ("held_out", 9)):
        with pytest.raises(UsageError, match=rf"^the references were searched with {name} "):
            audit(Rows(None), DATA, references=BESIDE, effort=replace(TINY, **{name: value}))
    with pytest.raises(UsageError, match=r"^expected references that were searched"):
        References((Rows(None),))
    with pytest.raises(UsageError, match=r"^quick and effort are given; expected one of them$"):
        audit(Rows(None), DATA, references=BESIDE, effort=TINY, quick=True)
    assert 0 < LEVEL < 1


def test_references_learn_from_labels_and_are_frozen():
    digits = robustkd.load_data("digits", train=400, validation=100)
    (one,) = train_references(digits, Effort(references=1, reference_images=2_000), seed=3)
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert accuracy_on(one, digits, "validation").value > 0.8
    assert train_references(digits, Effort(references=0)) == ()


def test_references_are_made_for_the_number_of_classes_and_serve_an_audit():
    few = replace(TINY, references=1, reference_images=500, batch=2000)
    made = make_references(DATA, few)
    assert made.effort == few.for_classes(CLASSES)
    assert made.led.shape[:2] == (2, len(few.strengths))
    assert audit(Rows(None), DATA, references=made, effort=few).verdict.word != "suspicious"


def test_the_reason_for_a_missing_p_value_is_reported():
    easy = {"a": Evidence(None, None, LED, longer_helps=True)}
    found = combine(easy, frozenset("a"))
    assert (found.word, found.reason, found.longer_helps) == ("inconclusive", LED, True)
    assert not combine({"a": Evidence(None, None, "x")}, frozenset("a")).longer_helps
    assert not combine(easy, frozenset("a"), trouble="x").longer_helps
    near = combine(of(a=0.03), frozenset("a"), level=0.01)
    assert (near.word, near.longer_helps) == ("inconclusive", True)


def test_p_values_are_multiplied_by_the_number_of_networks():
    one, two = (combine(of(a=0.008), frozenset("a"), tests=tests) for tests in (1, 2))
    assert (one.word, one.p_value) == ("suspicious", 0.008)
    assert (two.word, two.p_value) == ("inconclusive", 0.016)


def test_a_limited_source_has_fewer_images_and_no_augmentation():
    few = Limited(DATA, 20)
    assert (few.size("train"), few.size("test")) == (20, DATA.size("test"))
    order, crops = (torch.Generator().manual_seed(k) for k in (0, 1))
    sizes = [
        len(batch.labels)
        for batch in few.batches("train", batch_size=8, shuffle=order, augment=crops)
    ]
    assert sizes == [8, 8, 4]
    with pytest.raises(
        UsageError, match=r"^no training image has a label; the audit needs labels$"
    ):
        list(Limited(Unlabelled(DATA), 20).batches("train", batch_size=8))
    assert (few.name, few.classes, few.image_shape) == (DATA.name, DATA.classes, DATA.image_shape)
