"""Rows of benchmark results: measurements on clean and on triggered images."""

from __future__ import annotations

from torch import nn

from robustkd.attacks import Backdoored
from robustkd.core.types import DataSource
from robustkd.evaluation.measurement import measure
from robustkd.models import parameters
from robustkd.report.results import ResultRow


def measured_run(
    model: nn.Module,
    source: DataSource,
    backdoored: Backdoored,
    *,
    data: str,
    pair: str,
    attack: str,
    method: str,
    seed: int,
    seconds: float,
) -> ResultRow:
    """Measure a model for one row of the results.

    Args:
        model: The teacher itself, or a student.
        source: The images.
        backdoored: The teacher with its trigger and target.
        data: Name of the data.
        pair: Architectures of teacher and student.
        attack: Name of the attack.
        method: Name of the method.
        seed: Seed of everything random.
        seconds: Wall time of the training.
    """
    figures = measure(model, source, trigger=backdoored.trigger, target=backdoored.target)
    return ResultRow(
        data=data,
        pair=pair,
        attack=attack,
        method=method,
        seed=seed,
        params=parameters(model),
        seconds=round(seconds, 2),
        **figures.fields(),
    )
