"""Counts that can be checked by hand, and against a loop that counts one image at a time."""

from __future__ import annotations

import inspect
import math
import re
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.core.errors import UsageError
from robustkd.training.metrics import Proportion, accuracy, attack_success, robust_accuracy

SHARE = st.floats(0, 1)


def message(text: str) -> str:
    return f"^{re.escape(text)}$"


def sent_to(*classes: int) -> torch.Tensor:
    """Logits of three classes whose largest entry is the given one."""
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


# Six triggered images, target 0: two are of the target class, two are sent there, one is right.
TRIGGERED = sent_to(0, 1, 0, 0, 2, 1)
LABELS = torch.tensor([0, 0, 1, 2, 2, 2])


def test_counts_solved_by_hand():
    assert accuracy(TRIGGERED, LABELS) == Proportion(2, 6)
    assert attack_success(TRIGGERED, LABELS, target=0) == Proportion(2, 4)
    assert robust_accuracy(TRIGGERED, LABELS, target=0) == Proportion(1, 4)


def test_the_next_class_of_each_image_solved_by_hand():
    """Wanted are 1 1 2 0 0 0: the second and the fourth are classified so, the first is right."""
    assert attack_success(TRIGGERED, LABELS, target="next") == Proportion(2, 6)
    assert robust_accuracy(TRIGGERED, LABELS, target="next") == Proportion(2, 6)


@pytest.mark.parametrize("target", [0, "next"])
def test_images_without_a_label_do_not_count(target):
    more = torch.cat([TRIGGERED, sent_to(0, 1)])
    labels = torch.cat([LABELS, torch.tensor([-1, -1])])
    for metric in (attack_success, robust_accuracy):
        assert metric(more, labels, target=target) == metric(TRIGGERED, LABELS, target=target)


@st.composite
def predictions(draw):
    n, classes = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    label = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    seed = draw(st.integers(0, 1000))
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor(draw(label), dtype=torch.long)
    return logits, labels, draw(st.integers(0, classes - 1) | st.just("next"))


@settings(deadline=None)
@given(predictions())
def test_counts_are_those_of_a_loop(case):
    logits, labels, target = case
    right = sent = robust = victims = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        guess = max(range(len(row)), key=row.__getitem__)
        right += guess == label
        wanted = (label + 1) % len(row) if target == "next" else target
        if label != wanted:
            victims += 1
            sent += guess == wanted
            robust += guess == label
    assert accuracy(logits, labels) == Proportion(right, len(labels))
    assert attack_success(logits, labels, target=target) == Proportion(sent, victims)
    assert robust_accuracy(logits, labels, target=target) == Proportion(robust, victims)


@settings(deadline=None)
@given(predictions(), st.integers(1, 5))
def test_batches_add_up_to_the_whole(case, batch_size):
    logits, labels, target = case
    batches = list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    for count in (
        accuracy,
        lambda *batch: attack_success(*batch, target=target),
        lambda *batch: robust_accuracy(*batch, target=target),
    ):
        total = sum((count(*batch) for batch in batches), start=Proportion(0, 0))
        assert total == count(logits, labels)


@settings(deadline=None)
@given(predictions())
def test_attack_and_robustness_exclude_each_other(case):
    logits, labels, target = case
    sent = attack_success(logits, labels, target=target)
    robust = robust_accuracy(logits, labels, target=target)
    assert sent.n == robust.n
    assert sent.hits + robust.hits <= sent.n


def test_images_of_the_target_class_never_count_as_an_attack():
    count = attack_success(sent_to(0, 0), torch.tensor([0, 0]), target=0)
    assert count == Proportion(0, 0)
    with pytest.raises(UsageError, match="no images were counted"):
        _ = count.value


@settings(deadline=None)
@given(st.integers(1, 10_000), SHARE, st.floats(0.01, 0.999))
def test_wilson_is_its_closed_form(n, share, confidence):
    hits = round(share * n)
    p, z = hits / n, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = Proportion(hits, n).wilson(confidence)
    assert low == pytest.approx(centre - half, abs=1e-9)
    assert high == pytest.approx(centre + half, abs=1e-9)
    assert -1e-12 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1 + 1e-12


def test_wilson_narrows_with_more_images_and_is_not_empty_at_the_ends():
    few, many = Proportion(0, 10).wilson(), Proportion(0, 1000).wilson()
    assert few[0] == many[0] == 0
    assert few[1] == pytest.approx(0.2775, abs=1e-4)
    assert 0 < many[1] < few[1]


def test_proportion_reads_as_percentage_with_interval():
    assert str(Proportion(833, 962)) == "86.6 % [84.3, 88.6]"
    assert str(Proportion(0, 0)) == "no images"
    assert Proportion(833, 962).value == 833 / 962


@pytest.mark.parametrize("read", [lambda p: p.value, lambda p: p.wilson()])
def test_no_images_have_no_proportion(read):
    text = message("no images were counted; expected at least one to give a proportion")
    with pytest.raises(UsageError, match=text):
        read(Proportion(0, 0))


@pytest.mark.parametrize(("hits", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_hits_are_some_of_the_images(hits, n):
    with pytest.raises(
        UsageError, match=message(f"{hits} hits among {n} images; expected 0 <= hits <= n")
    ):
        Proportion(hits, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_is_a_fraction(confidence):
    text = message(f"confidence is {confidence}; expected above 0 and below 1")
    with pytest.raises(UsageError, match=text):
        Proportion(1, 2).wilson(confidence)


@pytest.mark.parametrize("metric", [attack_success, robust_accuracy])
@pytest.mark.parametrize("target", [-1, 3])
def test_target_must_be_a_class(metric, target):
    with pytest.raises(UsageError, match=message(f"target class is {target}; expected 0 to 2")):
        metric(TRIGGERED, LABELS, target=target)


def test_labels_of_other_images_are_refused_where_shapes_are_not_checked():
    with pytest.raises(
        UsageError, match=message("6 rows of logits and 1 labels; expected as many")
    ):
        inspect.unwrap(accuracy)(TRIGGERED, LABELS[:1])
