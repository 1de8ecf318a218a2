"""What the README tells a newcomer to type exists and runs."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import robustkd
from robustkd import cli, data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(SNIPPET,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_name_of_the_snippet_is_public():
    used = set(re.findall(r"robustkd\.(\w+)", SNIPPET))
    assert used >= {"run"}
    assert used <= set(robustkd.__all__)


def test_every_command_of_the_readme_exists():
    told = set(re.findall(r"(?:^|`)robustkd (\w+)", README, re.MULTILINE))
    assert told >= {"demo", "distill", "verify", "list"}
    assert told <= set(cli.app)


def test_the_readme_is_short_and_has_its_parts():
    assert len(README.splitlines()) <= 90
    assert README.count("<!-- table: ") == 1
    assert "benchmarks/results/compact/acc-asr.svg" in README
    for command in ("make demo", "make test", "pip install ."):
        assert f"\n{command}\n" in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_link_of_the_readme_leads_to_a_file_and_its_heading(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, link


def test_the_citation_names_the_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == version("robustkd")
    assert cited["license"] == "Apache-2.0"
    assert cited["references"][0]["url"].endswith("2406.03409")


@pytest.mark.slow
def test_the_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits")
    teacher = models.build(models.Spec("wrn-10-2", 10, digits.image_shape), seed=0)
    fit(Supervised(teacher), digits, epochs=3)
    models.save(teacher, tmp_path / "teacher.safetensors")
    exec(SNIPPET, {})  # noqa: S102 (our own README)
    student = tmp_path / "from-python" / "student.safetensors"
    assert models.load(student).spec.arch == "wrn-10-1"
