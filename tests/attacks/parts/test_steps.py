"""Steps that attacks have in common."""

from __future__ import annotations

import pytest
from torch import nn

from robustkd.attacks.parts.steps import training_only


def flags(network: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in network.parameters()]


def test_other_parameters_are_frozen_while_the_block_lasts_and_flags_come_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].bias.requires_grad_(False)
    before = flags(network)
    with training_only(network, network[1].parameters()):
        assert flags(network) == [False, False, True, True]
    assert flags(network) == before


def test_flags_come_back_after_an_error():
    network = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), training_only(network, []):
        1 / sum(flags(network))
    assert flags(network) == [True, True]
