"""A small network that has learned a little of the digits."""

from __future__ import annotations

from pathlib import Path

from robustkd import data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit


def write_network(path: Path) -> Path:
    """Train a ``wrn-10-1`` for three epochs on 300 digits, and save it."""
    source = data.load("digits", train=300)
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(model), source, epochs=3, batch_size=32)
    models.save(model, path)
    return path
