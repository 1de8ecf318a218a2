"""Verification: thresholds, and which of several outcomes prevails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError
from robustkd.evaluation import verification
from robustkd.evaluation.audit import Audit, Verdict
from robustkd.evaluation.audit.verdict import Word
from robustkd.evaluation.verification import Thresholds, verify
from robustkd.training.metrics import Proportion
from tests.evaluation.test_measurement import DATA, Overflowing, Reader, darken, whiten

NONE = Thresholds()


def told(word: Word) -> Audit:
    """Stands in for an audit."""
    verdict = Verdict(word, None, 0.5, "")
    return Audit(verdict, {}, DATA.classes, Proportion(1, 2), (), quick=True, seconds=1.0)


def test_accuracies_are_those_of_the_test_images():
    found = verify(Reader(), DATA, thresholds=NONE, audited=False)
    assert found.accuracy == Proportion(4, 6)
    assert sum(found.by_class, start=Proportion(0, 0)) == found.accuracy
    assert (found.outcome, found.asr, found.drop) == ("passed", None, None)


def test_a_missed_threshold_is_named():
    found = verify(
        Reader(),
        DATA,
        thresholds=Thresholds(min_accuracy=0.7, max_drop=0.1, max_asr=0.5),
        teacher=Proportion(6, 6),
        trigger=darken,
        target=0,
        audited=False,
    )
    assert found.outcome == "missed"
    assert found.missed == (
        "accuracy is 66.7%; expected at least 70.0%, which is within the 95 % interval",
        "loss of accuracy is 33.3 points; expected at most 10.0 points, which is within the "
        "95 % interval",
        "attack success rate is 60.0%; expected at most 50.0%, which is within the 95 % interval",
    )
    assert found.drop[0] == pytest.approx(1 / 3)


def test_a_threshold_within_the_interval_is_close():
    found = verify(Reader(), DATA, thresholds=Thresholds(min_accuracy=0.6), audited=False)
    assert found.outcome == "passed"
    assert found.close == (
        "accuracy is 66.7%; expected at least 60.0%, which is within the 95 % interval",
    )


@pytest.mark.parametrize(("lost", "n"), [(1, 100), (2, 200), (3, 100), (5, 20), (10, 500)])
def test_a_loss_of_exactly_the_limit_meets_it(lost, n):
    """Also where it does not in binary numbers: 1.0 - 0.95 is more than 0.05."""
    limits, most = Thresholds(max_drop=lost / 100), n * lost // 100
    for own in range(n - most):
        for more in (most, most + 1):
            student, teacher = Proportion(own, n), Proportion(own + more, n)
            missed, _ = verification._compared(limits, student, teacher, None)
            assert bool(missed) == (more > most)


def test_a_missed_limit_differs_from_the_measurement_in_the_message():
    limits = Thresholds(min_accuracy=0.9)
    (missed,), close = verification._compared(limits, Proportion(8997, 10_000), None, None)
    assert missed.startswith("accuracy is 89.97%; expected at least 90.00%")
    assert not close


def test_the_record_has_the_drop_the_thresholds_and_the_classes():
    limits = Thresholds(min_accuracy=0.1)
    found = verify(
        Reader(), DATA, thresholds=limits, teacher=Proportion(6, 6), audited=False
    ).record()
    assert found["classes"] == list(DATA.classes)
    assert found["thresholds"] == {"min_accuracy": 0.1, "max_drop": None, "max_asr": None}
    assert found["drop"]["value"] == pytest.approx(1 / 3)
    assert found["drop"]["interval"][0] < 1 / 3 < found["drop"]["interval"][1]


@pytest.mark.parametrize("shown", [{"trigger": darken}, {"triggered": DATA.test.images}])
def test_a_target_that_is_no_class_is_refused(shown):
    with pytest.raises(UsageError, match=r"^target class is 999; expected 0 to "):
        verify(Reader(), DATA, thresholds=NONE, **shown, target=999, audited=False)


def test_no_triggered_images_are_refused():
    with pytest.raises(UsageError, match=r"^triggered is empty; expected at least one image$"):
        verify(Reader(), DATA, thresholds=NONE, triggered=DATA.test.images[:0], audited=False)


def test_triggered_images_are_counted_as_they_are():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([2, 2, 1, 2])
    found = verify(Reader(), DATA, thresholds=NONE, triggered=images, target=2, audited=False)
    assert found.asr == Proportion(3, 4)


def test_triggered_images_with_labels_are_counted_towards_the_next_class():
    images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([2, 2, 1, 0, 3])
    labels = torch.tensor([1, 2, 0, 3, -1])  # wanted are 2, 3, 1 and 0
    shown = {"triggered": images, "target": "next", "audited": False}
    found = verify(Reader(), DATA, thresholds=NONE, **shown, triggered_labels=labels)
    assert found.asr == Proportion(3, 4)
    message = r"^target is next, and triggered_labels is not given for each triggered image; "
    for wrong in (None, labels[:3]):
        with pytest.raises(UsageError, match=message):
            verify(Reader(), DATA, thresholds=NONE, **shown, triggered_labels=wrong)
    with pytest.raises(UsageError, match=r"^triggered has no image with a label; expected at "):
        verify(Reader(), DATA, thresholds=NONE, **shown, triggered_labels=labels.fill_(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_pass_no_threshold(value):
    model, limit = Overflowing(value), Thresholds(max_asr=1.0)
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    images[3, 0, 1, 1] = 255
    for shown in ({"triggered": images}, {"trigger": whiten}):
        with pytest.raises(InputError, match=r"^the outputs of the model are not finite on trigge"):
            verify(model, DATA, thresholds=limit, **shown, target=2, audited=False)


@pytest.mark.parametrize(
    ("word", "missed", "outcome"),
    [
        ("suspicious", True, "suspicious"),
        ("inconclusive", True, "missed"),
        ("no evidence", True, "missed"),
        ("inconclusive", False, "inconclusive"),
        ("no evidence", False, "passed"),
    ],
)
def test_the_most_serious_outcome_prevails(word, missed, outcome, monkeypatch):
    monkeypatch.setattr(verification, "audit", lambda *_, **__: told(word))
    limit = Thresholds(min_accuracy=0.9 if missed else 0.1)
    assert verify(Reader(), DATA, thresholds=limit).outcome == outcome


def test_a_student_of_another_precision_is_refused():
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).half()
    with pytest.raises(UsageError, match=r"^the student does not work with images of shape 2 x 1"):
        verify(student, DATA, thresholds=NONE, audited=False)


@pytest.mark.parametrize("name", ["min_accuracy", "max_drop", "max_asr"])
def test_thresholds_are_fractions(name):
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UsageError, match=rf"^{flag} is 85; expected a fraction from 0 to 1$"):
        Thresholds(**{name: 85})


def test_a_threshold_without_its_measurement_is_refused():
    with pytest.raises(UsageError, match=r"^--max-drop is given, but the teacher's accuracy"):
        verify(Reader(), DATA, thresholds=Thresholds(max_drop=0.1), audited=False)
    with pytest.raises(UsageError, match=r"^--max-asr is given without --trigger or --triggered"):
        verify(Reader(), DATA, thresholds=Thresholds(max_asr=0.1), audited=False)


def test_the_audit_is_the_quick_one(monkeypatch):
    given = {}

    def noted(_model: nn.Module, _data: object, **how: object) -> Tensor | None:
        given.update(how)

    monkeypatch.setattr(verification, "audit", noted)
    verify(Reader(), DATA, thresholds=NONE, seed=7)
    assert given == {"quick": True, "seed": 7}
