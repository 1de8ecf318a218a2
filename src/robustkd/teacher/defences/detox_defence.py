"""Feature-variance detoxification as an entry of the registry of defences."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from torch import nn

from robustkd.core.method_settings import DetoxSettings, Ratio
from robustkd.core.types import DataSource
from robustkd.teacher.defences.base import ONCE, Defended
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import Precision


@dataclass(frozen=True)
class Detoxification:
    """Detoxification; see :mod:`robustkd.teacher.defences.detoxification`.

    Its settings are not those of the method ``paper``, whose cap is 0.2.

    Attributes:
        cap: Largest value of a mask, in (0, 1].
        ratio: How the variance ratio of a stage is computed.
        accuracy_budget: Largest loss of clean validation accuracy, in [0, 1).
        steps: Optimiser steps for each lambda, at least 1.
        batch_size: Images per step, at least 2.
        lr: Learning rate of masks and patterns, above 0.
    """

    cap: float = DetoxSettings.cap
    ratio: Ratio = DetoxSettings.ratio
    accuracy_budget: float = DetoxSettings.accuracy_budget
    steps: int = field(default=DetoxSettings.steps, metadata=ONCE)
    batch_size: int = DetoxSettings.batch_size
    lr: float = DetoxSettings.lr

    def __post_init__(self) -> None:
        self._search()

    def __call__(
        self, network: nn.Module, clean: DataSource, *, seed: int, precision: Precision = "no"
    ) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`.

        Args:
            network: The network; it is not changed.
            clean: Clean images.
            seed: Seed of everything random.
            precision: Mixed precision; see :func:`robustkd.detoxify`.
        """
        done = detoxify(network, clean, seed=seed, precision=precision, **asdict(self))
        return Defended(done.teacher.eval(), json.loads(json.dumps(asdict(done.record))))

    def batches(self, images: int) -> int:
        """Return the largest number of training batches for a number of images."""
        del images
        return self._search().most_steps

    def _search(self) -> DetoxSettings:
        """Return all settings, after a check of their ranges."""
        return DetoxSettings(**asdict(self))
