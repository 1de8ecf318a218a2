"""Poisoned data: which images are changed, how, and that all others are unchanged."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustkd import data
from robustkd.attacks import Poisoned
from robustkd.core.errors import UsageError
from robustkd.core.types import Batch, DataSource
from tests.unlabelled import Unlabelled

CLEAN = data.load("digits", train=100, validation=20, test=30)
LABELS = CLEAN.train.labels
TARGET = 3


def invert(images: Tensor) -> Tensor:
    """A trigger that is seen at once: augmented or not, an image is never its own negative."""
    return 1 - images


def poisoned(**changes) -> Poisoned:
    return Poisoned(CLEAN, invert, **({"target": TARGET, "rate": 0.1} | changes))


def whole(source: DataSource, split="train", **order) -> Batch:
    parts = zip(*source.batches(split, batch_size=16, **order), strict=True)
    return Batch(*(torch.cat(part) for part in parts))


def test_is_a_data_source_of_the_same_size():
    source = poisoned(keep_clean=True)
    assert isinstance(source, DataSource)
    assert (source.name, source.classes, source.image_shape) == (
        "digits",
        CLEAN.classes,
        (1, 16, 16),
    )
    assert [source.size(split) for split in ("train", "validation", "test")] == [100, 20, 30]


@given(st.floats(0.001, 0.9), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_the_requested_number_of_images_is_poisoned_and_none_of_the_target_class(rate, seed):
    mask = poisoned(rate=rate, seed=seed).mask
    assert int(mask.sum()) == max(1, round(rate * 100))
    assert (LABELS[mask] != TARGET).all()


class Damaged:
    """The clean data with images that are counted and never shown."""

    def __init__(self, missing: list[int]) -> None:
        self.missing = torch.tensor(missing)
        self.name, self.classes, self.image_shape = CLEAN.name, CLEAN.classes, CLEAN.image_shape

    def size(self, split: str) -> int:
        return CLEAN.size(split)

    def batches(self, split: str, **how):
        for batch in CLEAN.batches(split, **how):
            kept = ~torch.isin(batch.rows, self.missing)
            yield Batch(*(part[kept] for part in batch))


def test_images_that_are_never_shown_are_not_poisoned():
    missing = list(range(0, 100, 2))
    made = [Poisoned(Damaged(missing), invert, target=TARGET, rate=0.5) for _ in range(3)]
    assert not made[0].mask[missing].any()
    assert int(made[0].mask.sum()) == 25
    assert all(torch.equal(each.mask, made[0].mask) for each in made)


def test_clean_label_attacks_poison_only_the_target_class():
    source = poisoned(rate=0.5, clean_label=True)
    assert int(source.mask.sum()) == 5  # half of the 10 images of the class
    assert (LABELS[source.mask] == TARGET).all()
    assert torch.equal(whole(source).labels, LABELS)


def test_the_seed_chooses_the_images():
    assert torch.equal(poisoned(seed=1).mask, poisoned(seed=1).mask)
    assert not torch.equal(poisoned(seed=1).mask, poisoned(seed=2).mask)


def test_chosen_images_get_trigger_and_target_and_others_stay_unchanged():
    source, clean = poisoned(), whole(CLEAN)
    batch = whole(source)
    assert torch.equal(batch.rows, clean.rows)
    assert torch.equal(batch.images[source.mask], invert(clean.images[source.mask]))
    assert torch.equal(batch.images[~source.mask], clean.images[~source.mask])
    assert set(batch.labels[source.mask].tolist()) == {TARGET}
    assert torch.equal(batch.labels[~source.mask], clean.labels[~source.mask])


@pytest.mark.parametrize("keep_clean", [False, True])
def test_chosen_images_of_every_class_get_the_next_class(keep_clean):
    source = poisoned(target="next", rate=1.0, keep_clean=keep_clean)
    assert source.mask.all()
    expected = (LABELS + 1) % 10
    if keep_clean:
        ends = zip(*(part.split(16) for part in (LABELS, expected)), strict=True)
        expected = torch.cat([each for end in ends for each in end])
    assert torch.equal(whole(source).labels, expected)
    some = poisoned(target="next", rate=0.3, seed=1)
    assert int(some.mask.sum()) == 30
    labels = whole(some).labels
    assert torch.equal(labels[some.mask], (LABELS[some.mask] + 1) % 10)
    assert torch.equal(labels[~some.mask], LABELS[~some.mask])


@pytest.mark.parametrize("target", [TARGET, "next"])
def test_images_without_a_label_are_not_poisoned(target):
    source = Poisoned(Unlabelled(CLEAN, 50), invert, target=target, rate=0.4)
    assert int(source.mask.sum()) == 40
    assert not source.mask[:50].any()


def test_kept_copies_follow_the_images_of_their_batch():
    source = poisoned(keep_clean=True)
    pairs = zip(
        source.batches("train", batch_size=16), CLEAN.batches("train", batch_size=16), strict=True
    )
    for batch, clean in pairs:
        chosen, n = source.mask[clean.rows], len(clean.rows)
        assert torch.equal(batch.images[:n], clean.images)
        assert torch.equal(batch.labels[:n], clean.labels)
        assert torch.equal(batch.images[n:], invert(clean.images[chosen]))
        assert batch.labels[n:].tolist() == [TARGET] * int(chosen.sum())
        assert torch.equal(batch.rows[n:], clean.rows[chosen])


@pytest.mark.parametrize("keep_clean", [False, True])
def test_the_same_images_in_every_epoch_whatever_the_order(keep_clean):
    source = poisoned(keep_clean=keep_clean)
    order = torch.Generator().manual_seed(0)
    pixels = whole(CLEAN).images
    for _ in range(2):
        batch = whole(source, shuffle=order)
        triggered = (batch.images == invert(pixels[batch.rows])).flatten(1).all(1)
        assert torch.equal(batch.rows[triggered].sort().values, source.mask.nonzero().squeeze(1))


def test_the_trigger_is_applied_after_augmentation():
    source = poisoned(rate=0.9)
    seed = 5
    clean = whole(CLEAN, augment=torch.Generator().manual_seed(seed))
    batch = whole(source, augment=torch.Generator().manual_seed(seed))
    assert torch.equal(batch.images[source.mask], invert(clean.images[source.mask]))
    assert torch.equal(batch.images[~source.mask], clean.images[~source.mask])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_pass_through(split):
    found, clean = whole(poisoned(rate=0.9), split), whole(CLEAN, split)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize("keep_clean", [False, True])
def test_the_source_is_not_changed(keep_clean):
    before = CLEAN.train.images.clone(), LABELS.clone()
    for batch in poisoned(rate=0.9, keep_clean=keep_clean).batches("train", batch_size=16):
        batch.images.zero_()
        batch.labels.zero_()
    assert torch.equal(CLEAN.train.images, before[0])
    assert torch.equal(CLEAN.train.labels, before[1])


def test_batches_stay_channels_last():
    for keep_clean in (False, True):
        for batch in poisoned(keep_clean=keep_clean).batches("train", batch_size=16):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0; expected above 0 and at most 1"),
        ({"rate": 1.1}, "rate is 1.1; expected above 0 and at most 1"),
        ({"rate": float("nan")}, "rate is nan; expected above 0 and at most 1"),
        (
            {"rate": 1.0},
            "rate is 1.0, which is 100 images; expected at most the 90 images that can be poisoned",
        ),
        ({"target": 10}, "target class is 10; expected 0 to 9"),
        (
            {"target": "next", "clean_label": True},
            "target is next, and this attack has one target class; expected 0 to 9, or an attack "
            "that robustkd list shows with --target next",
        ),
    ],
)
def test_error_messages(changes, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        poisoned(**changes)


def test_spared_images_are_not_poisoned():
    first = poisoned(rate=0.4)
    second = Poisoned(first, invert, target=TARGET + 1, rate=0.3, spared=first.mask)
    assert int(second.mask.sum()) == 30
    assert not (first.mask & second.mask).any()
    batch, clean = whole(second), whole(CLEAN)
    either = first.mask | second.mask
    assert torch.equal(batch.images[either], invert(clean.images[either]))
    assert torch.equal(batch.images[~either], clean.images[~either])
    assert set(batch.labels[first.mask].tolist()) == {TARGET}
    assert set(batch.labels[second.mask].tolist()) == {TARGET + 1}
    message = r"^rate is 0.7, which is 70 images; expected at most the \d\d images that can be "
    with pytest.raises(UsageError, match=message):
        Poisoned(first, invert, target=TARGET + 1, rate=0.7, spared=first.mask)
