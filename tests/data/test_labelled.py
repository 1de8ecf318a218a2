"""The order from which subsets are cut: a permutation whose every beginning is stratified."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.data.labelled import Labelled, class_sizes, random_ranks, stratified_order

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)


@given(labels=LABELS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_is_a_permutation_that_starts_with_every_class(labels, seed):
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


@given(labels=LABELS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_is_that_of_a_naive_sort(labels, seed):
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    places = []
    for label in range(6):
        own = [row for row in shuffled if labels[row] == label]
        places += [(rank / len(own), label, row) for rank, row in enumerate(own)]
    assert stratified_order(labels, seed=seed).tolist() == [row for *_, row in sorted(places)]


def test_ranks_count_within_a_class_across_pieces():
    # More images than are looked at together.
    labels = np.random.default_rng(0).integers(0, 9, 50_000).astype(np.int8)
    rank = np.full(len(labels), -1)
    pieces = list(random_ranks(labels, seed=3))
    assert len(pieces) > 1
    for rows, found in pieces:
        rank[rows] = found
    sizes = class_sizes(labels)
    for label in range(9):
        assert np.array_equal(np.sort(rank[labels == label]), np.arange(sizes[label]))
    assert sizes.tolist() == np.bincount(labels).tolist()
    assert class_sizes(labels, classes=11).tolist() == [*sizes, 0, 0]


def test_the_order_depends_on_the_seed():
    labels = torch.arange(100) % 10
    order = stratified_order(labels, seed=1)
    assert torch.equal(order, stratified_order(labels, seed=1))
    assert not torch.equal(order, stratified_order(labels, seed=2))


def test_take_keeps_images_with_their_labels():
    labels = torch.arange(10)
    images = labels.to(torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 2, 2)
    taken = Labelled(images, labels).take(torch.tensor([7, 2, 5]))
    assert taken.labels.tolist() == [2, 5, 7]
    assert taken.images[:, 0, 0, 0].tolist() == [2, 5, 7]
