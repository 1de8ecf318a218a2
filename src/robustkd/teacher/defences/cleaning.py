"""Cleaning a network by a defence of the registry."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence
from robustkd.core.types import DataSource
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.detox_defence import Detoxification
from robustkd.teacher.defences.registry import find
from robustkd.training.config import Precision
from robustkd.training.precision import mixed


def clean_network(
    network: nn.Module,
    clean: DataSource,
    use: NetworkDefence,
    *,
    seed: int,
    precision: Precision = "no",
) -> Defended:
    """Clean a copy of a network by a defence with its default settings.

    Args:
        network: Classifier of images in [0, 1]; it is not changed.
        clean: Clean images.
        use: Name of the defence, and which network it is.
        seed: Seed of everything random.
        precision: Mixed precision of all forward passes of the defence; for ``detox``, of those
            that train the masks.

    Returns:
        The new network, and the record of the defence with its name, source and settings.

    Raises:
        UsageError: If the defence is unknown, the network lacks layers that it needs, or a defence
            that users have added returns no :class:`Defended` with a new network, or changes the
            given one.
        TrainingError: If a weight is no longer finite.
    """
    row = find(use.name)
    before = _versions(network)
    if isinstance(row.defence, Detoxification):
        # It measures variances and accuracies in full precision, and chooses the others itself.
        done = row.defence(network, clean, seed=seed, precision=precision)
    else:
        with mixed(precision, device_of(network)):
            done = row.defence(network, clean, seed=seed)
    _check_defended(done, use.name, network)
    if _versions(network) != before:
        raise UsageError(
            f"the defence {use.name} changes the network that it was given, which has to stay as "
            "it is; let it clean copy.deepcopy of the network"
        )
    return Defended(
        done.network,
        {
            "name": use.name,
            "on": use.on,
            "summary": row.summary,
            "source": row.source,
            **done.record,
            "settings": settings_of(use.name),
        },
    )


def _versions(network: nn.Module) -> list[int]:
    """Return how often each tensor of a network was changed in place, as PyTorch counts it."""
    return [
        tensor._version
        for tensor in itertools.chain(network.parameters(), network.buffers())
        if not tensor.is_inference()
    ]


def _check_defended(done: object, name: str, network: nn.Module) -> None:
    """Raise an error for what is not the result of a defence.

    Raises:
        UsageError: If it is none, or does not have a new network.
    """
    if not isinstance(done, Defended):
        raise UsageError(
            f"the defence {name} returns {type(done).__name__}; expected "
            "robustkd.teacher.defences.base.Defended"
        )
    if not isinstance(done.network, nn.Module):
        raise UsageError(
            f"the defence {name} returns a network of type {type(done.network).__name__}; expected "
            "an nn.Module"
        )
    if done.network is network:
        raise UsageError(
            f"the defence {name} returns the network that it was given, which has to stay as it "
            "is; expected a new one: let it clean copy.deepcopy of the network"
        )


def settings_of(name: str) -> dict[str, object]:
    """Return the settings of a defence as JSON values, for records and the names of results.

    Raises:
        UsageError: If the defence is unknown.
    """
    settings: dict[str, object] = json.loads(json.dumps(asdict(find(name).defence)))
    return settings
