"""What the README tells a newcomer to type exists and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import robustkd
from robustkd import cli, data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

README = (Path(__file__).parents[1] / "README.md").read_text()
(SNIPPET,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_name_of_the_snippet_is_public():
    used = set(re.findall(r"robustkd\.(\w+)", SNIPPET))
    assert used >= {"detoxify", "distill"}
    assert used <= set(robustkd.__all__)


def test_every_command_of_the_readme_exists():
    told = set(re.findall(r"^ +robustkd (\w+)", README, re.MULTILINE))
    assert told >= {"demo", "distill", "evaluate", "list"}
    for command in told:
        assert cli.app[command] is not None


@pytest.mark.slow
def test_the_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits")
    teacher = models.build(models.Spec("wrn-10-2", 10, digits.image_shape), seed=0)
    fit(Supervised(teacher), digits, epochs=3)
    models.save(teacher, tmp_path / "teacher.safetensors")
    exec(SNIPPET, {"path": tmp_path / "teacher.safetensors"})  # noqa: S102 (our own README)
    assert models.load(tmp_path / "student.safetensors").spec.arch == "wrn-10-1"
