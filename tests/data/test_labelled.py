"""The order from which subsets are cut: a permutation whose every beginning is stratified."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.data.labelled import Labelled, stratified_order

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)


@given(labels=LABELS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_is_a_permutation_that_meets_every_class_first(labels, seed):
    order = stratified_order(labels, seed=seed)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    present = labels.unique()
    assert torch.equal(labels[order[: len(present)]].sort().values, present)


@given(labels=LABELS, seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_beginning_takes_equal_shares_of_all_classes(labels, seed, data):
    n = data.draw(st.integers(1, len(labels)))
    first = labels[stratified_order(labels, seed=seed)[:n]]
    total = labels.bincount(minlength=6).double()
    taken = first.bincount(minlength=6).double()
    share, one_less = taken / total, (taken - 1) / total
    # No class may be so far ahead that another one is due before its last image.
    present = total > 0
    assert one_less[present].max() <= share[present].min()


def test_seed_decides():
    labels = torch.arange(100) % 10
    order = stratified_order(labels, seed=1)
    assert torch.equal(order, stratified_order(labels, seed=1))
    assert not torch.equal(order, stratified_order(labels, seed=2))


def test_take_keeps_images_beside_their_labels():
    labels = torch.arange(10)
    images = labels.to(torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 2, 2)
    taken = Labelled(images, labels).take(torch.tensor([7, 2, 5]))
    assert taken.labels.tolist() == [2, 5, 7]
    assert taken.images[:, 0, 0, 0].tolist() == [2, 5, 7]
