from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkd.report import ResultRow, Row, aggregate

SCORES = {
    "teacher": (0.99, 1.0),
    "no-teacher": (0.97, 0.02),
    "ofd": (0.976, 0.639),
    "kd": (0.97, 0.6),
    "paper": (0.96, 0.05),
    "default": (0.972, 0.012),
}


def make_run(**changes: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "data": "digits",
        "pair": "wrn10-2-wrn10-1",
        "attack": "ckd",
        "method": "ofd",
        "seed": 0,
        "acc": 0.976,
        "asr": 0.639,
        "ra": 0.3,
        "params": 77_850,
        "seconds": 31.0,
    }
    return run | changes


def make_rows(**asr_and_acc: tuple[float, float | None] | None) -> list[Row]:
    """Rows of one seed; ``no_teacher`` stands for ``no-teacher``, None leaves a method out."""
    scores: dict[str, Any] = {"ofd": (0.976, 0.639), "default": (0.972, 0.012)} | asr_and_acc
    return aggregate(
        ResultRow(**make_run(method=name.replace("_", "-"), acc=score[0], asr=score[1]))
        for name, score in scores.items()
        if score is not None
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder: runs, other keys of results.json, and arrays."""

    def written(
        runs: Any = None, arrays: dict[str, np.ndarray] | None = None, **others: Any
    ) -> Path:
        if runs is None:
            runs = [
                make_run(method=name, acc=acc, asr=asr, seed=seed)
                for name, (acc, asr) in SCORES.items()
                for seed in range(3)
            ]
        content = {"runs": runs, "environment": {"torch": "2.10"}, "config": {"a": {"b": 1}}}
        (tmp_path / "results.json").write_text(json.dumps(content | others))
        if arrays is not None:
            np.savez(tmp_path / "arrays.npz", **arrays)
        return tmp_path

    return written


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.random((3, 1, 8, 8)).astype(np.float32)
    return {
        "images": images,
        "triggered": 1 - images,
        "trigger_mask": generator.random((1, 8, 8)),
        "trigger_pattern": generator.random((1, 8, 8)),
        "mask/default/group1": 0.2 * generator.random((4, 8, 8)),
        "mask/default/group2": 0.2 * generator.random((8, 4, 4)),
        "labels": np.array([1, 2, 3]),
        "predictions/ofd": np.array([0, 0, 3]),
        "predictions/default": np.array([1, 2, 3]),
    }
