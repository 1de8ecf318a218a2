"""Parts of batches, and what torchrun tells a process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.launch import Launched, launched
from robustkd.core.types import Batch
from robustkd.training.parts import PartsOfBatches
from robustkd.training.processes import ONE, Portion, Processes, start

TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *TORCHRUN):
        monkeypatch.delenv(name, raising=False)

    def give(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("total", [1, 4, 13])
def test_a_batch_is_split_as_torch_splits_it(parts, total):
    rows = torch.arange(total)
    expected = [part.tolist() for part in rows.tensor_split(parts)]
    assert [rows[own].tolist() for own, _ in Portion(None, total).split(parts)] == expected
    for rank in range(3):
        places = rows[rank::3]
        for (own, part), whole in zip(Portion(places, total).split(parts), expected, strict=True):
            assert places[own].tolist() == [row for row in whole if row % 3 == rank]
            assert part.total == len(whole)
            assert torch.equal(part.own(torch.tensor(whole)), places[own])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("total", [2, 5, 8, 31])
def test_every_image_is_computed_once(accumulate, total):
    """Or by all processes, with a weight that is theirs together."""
    weight = torch.zeros(total)
    for rank in range(3):
        parts = PartsOfBatches(Processes(rank, 3), accumulate)
        places = parts.places(total)
        batch = Batch(torch.zeros(len(places), 1, 1, 1), places, places)
        for _, own, part in parts.of(batch, total):
            weight[own] += part.weight / len(own)
    assert torch.allclose(weight, torch.full((total,), 1 / total))


def test_one_process_computes_whole_batches():
    parts = PartsOfBatches(ONE, accumulate=1)
    labels = torch.arange(5)
    ((_, own, part),) = parts.of(Batch(torch.zeros(5, 1, 1, 1), labels, labels), 5)
    assert torch.equal(own, labels)
    assert part.weight == 1
    assert part.portion == ()


def test_without_torchrun_there_is_one_process(environment):
    assert launched() == Launched(0, 1, 0, 1)
    assert start() is ONE
    environment(WORLD_SIZE="8")  # as other programs set it
    assert start() is ONE


def test_the_rank_given_by_torchrun_is_used(environment):
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", **TORCHRUN)
    assert launched() == Launched(rank=3, count=4, local=1, here=2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"RANK": "x"}, "the environment variable RANK is 'x'; expected a number"),
        ({"RANK": "4"}, "this is process 4 of 4, and 0 of 1 on this machine; expected"),
    ],
)
def test_an_impossible_rank_is_refused(environment, values, expected):
    environment(WORLD_SIZE="4", **TORCHRUN, **values)
    with pytest.raises(UsageError, match=expected):
        launched()


class _Twins(Processes):
    """Two processes that compute the same."""

    def add_up(self, values: torch.Tensor) -> None:
        values *= 2


def test_a_parameter_without_a_gradient_keeps_none():
    used, unused = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    used.grad = torch.full((2, 3), 0.5)
    parts = PartsOfBatches(_Twins(0, 2), accumulate=1)
    means = parts.together([unused, used], {"loss": torch.tensor(1.5), "acc": torch.tensor(0.25)})
    assert unused.grad is None
    assert torch.equal(used.grad, torch.ones(2, 3))
    assert {name: float(value) for name, value in means.items()} == {"loss": 3.0, "acc": 0.5}
