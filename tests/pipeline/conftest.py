"""A teacher, and a finished run of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustkd import models
from robustkd.core.methods import METHODS
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.pipeline.runs import CLEAN, build, run


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teacher = build(1)
    fit(Supervised(teacher), CLEAN, epochs=4, batch_size=32)
    models.save(teacher, path)
    return path


@pytest.fixture(scope="session")
def finished(teacher_file, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "both"
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "both", brief)
        return out, run(teacher_file, out, method="both", seed=5)
