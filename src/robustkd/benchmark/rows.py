"""Rows of benchmark results: measurements on clean and on triggered images.

A teacher with two triggers has two rows for each method, one for each trigger, with an attack
success rate of its own. The rows have the same model, so their clean accuracy is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustkd.attacks import Backdoored
from robustkd.core.types import DataSource, Settings
from robustkd.evaluation.measurement import measure
from robustkd.models import parameters
from robustkd.report.results import ResultRow


def names_of_rows(attack: str, settings: Settings) -> tuple[str, ...]:
    """Return the names under which results show an attack, one for each of its triggers.

    >>> names_of_rows("tone", {"epochs": 5})
    ('tone',)
    >>> names_of_rows("tone", {"second": "blend", "second_target": 3})
    ('tone (with blend)', 'blend (with tone)')
    """
    if "second" not in settings:
        return (attack,)
    second = settings["second"]
    return f"{attack} (with {second})", f"{second} (with {attack})"


def measured_runs(
    model: nn.Module,
    source: DataSource,
    backdoored: Backdoored,
    *,
    names: Sequence[str],
    data: str,
    pair: str,
    method: str,
    seed: int,
    seconds: float,
) -> list[ResultRow]:
    """Measure a model for the rows of the results, one for each trigger.

    Args:
        model: The teacher itself, or a student.
        source: The images.
        backdoored: The teacher with its triggers and targets.
        names: Names of the attack in the rows, see :func:`names_of_rows`.
        data: Name of the data.
        pair: Architectures of teacher and student.
        method: Name of the method.
        seed: Seed of everything random.
        seconds: Wall time of the training.
    """
    return [
        ResultRow(
            data=data,
            pair=pair,
            attack=name,
            method=method,
            seed=seed,
            params=parameters(model),
            seconds=round(seconds, 2),
            attacks=tuple(names),
            **measure(model, source, trigger=trigger, target=target).fields(),
        )
        for name, (trigger, target) in zip(names, backdoored.backdoors, strict=True)
    ]
