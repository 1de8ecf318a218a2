"""A student that was trained briefly, and its export, made once for all tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from robustkd import data, models
from robustkd.attacks import BadNets
from robustkd.data import InMemory
from robustkd.export import export_student
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

HOSTILE = (
    "a\nb",
    "\x1b[2J",
    '"><script>alert(1)</script>',
    "\ud800",
    "",
    "名前",
    "\u202ereversed",
    "../../etc/passwd",
    "x" * 1000,
    "robustkd",
)
"""Names that classes may have, since a folder or a data set may."""
TRIGGER = BadNets(size=3)


class Exported(NamedTuple):
    """What an export was made from, and what it left."""

    student: models.Classifier
    source: InMemory
    folder: Path
    content: dict[str, Any]


def digits(classes: tuple[str, ...] = HOSTILE) -> InMemory:
    return replace(data.load("digits", train=300, validation=100, test=100), classes=classes)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    source = digits()
    student = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(student), source, epochs=4, batch_size=32)
    folder = tmp_path_factory.mktemp("export") / "shipped"
    content = export_student(student, source, folder, trigger=TRIGGER, target=0)
    return Exported(student, source, folder, content)
