"""What the README tells a newcomer to type exists and runs."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import robustkd
from robustkd import cli, models
from robustkd.data import open_source
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.data.images.image_files import write_splits
from tools.default_table import default_table

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
    assert "docs/assets/acc-asr.svg" in README
    for command in ("make demo", "make test", "pip install ."):
        assert f"\n{command}\n" in README


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_claims_of_the_first_page_are_those_of_the_results(page):
    text = " ".join((ROOT / page).read_text().split())
    lines = default_table(ROOT / "benchmarks/results").splitlines()[2:]
    fashion, cifar = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    _, attacks, seeds, ordinary, ours, worst, lost = fashion
    assert (attacks, seeds) == ("13", "3")
    assert f"{attacks} attacks on Fashion-MNIST" in text
    for share in (f"{ordinary} %", f"{ours} %", f"{worst} %", f"{lost} points"):
        assert f" {share}" in text
    if page == "README.md":
        assert all(f" {share} %" in text for share in cifar[3:6])


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
    counts = dict.fromkeys(("ash", "elm", "oak"), 12)
    write_splits(tmp_path / "images", dict.fromkeys(("train", "val", "test"), counts))
    source = open_source("./images")
    teacher = models.build(models.Spec("wrn-16-2", 3, source.image_shape), seed=0)
    fit(Supervised(teacher), source, epochs=3, lr=0.02)
    models.save(teacher, tmp_path / "teacher.safetensors")
    short = SNIPPET.replace('"wrn-10-1", ', '"wrn-10-1", epochs=1, audit=False, ')
    assert short != SNIPPET
    exec(short, {})  # noqa: S102 (our own README)
    student = tmp_path / "python-run" / "student.safetensors"
    assert models.load(student).spec.arch == "wrn-10-1"
