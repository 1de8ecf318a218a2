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
    with pytest.raises(KeyboardInterrupt), training_only(network, []):
        assert not any(flags(network))
        raise KeyboardInterrupt
    assert flags(network) == before
