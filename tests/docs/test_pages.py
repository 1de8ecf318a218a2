"""What README, quickstart and guides tell a newcomer to type exists, and runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

import robustkd
from robustkd import cli, data, models
from robustkd.benchmark import load_grid
from robustkd.core.types import DataSource
from robustkd.data import Reading, open_source
from robustkd.data.sources import hub
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.data.images.image_files import write_splits
from tests.data.sources.hub_files import write_hub
from tests.data.sources.official_files import write_cifar
from tests.docs.pages import FOLLOWED, ROOT, Block, blocks

SHELL = blocks("sh")
PYTHON = blocks("python")
YAML = blocks("yaml")
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = (ROOT / "pyproject.toml").read_text()
RUN_IN_PYTHON = ("docs/quickstart.md", "docs/guides/audit.md", "docs/guides/defences.md")


def test_every_fenced_block_is_of_a_language_that_is_checked():
    for page in FOLLOWED:
        fences = re.findall(r"^ *```(\w*)", (ROOT / page).read_text(), re.MULTILINE)
        assert set(fences) <= {"", "sh", "python", "yaml", "text"}, page
        assert fences[::2] == [name for name in fences if name], f"{page}: a block has no language"
    assert len(SHELL) > 10
    assert len(PYTHON) > 3


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_can_be_typed(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"teacher": "teacher.pt", "arch": "wrn-10-1", "data": "digits", "student": "wrn-10-1"}
    for run in ("my-run", "tiny-run"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.yaml").write_text(yaml.safe_dump(flags))
    for program, *words in map(_started_once, block.commands()):
        if program == "robustkd":
            command, _, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
            assert callable(command)
        elif program == "make":
            for target in words:
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"make {target}"
        elif program == "pip":
            assert words[0] == "install"
            assert words[1].partition("[")[0] == "."
            for extra in re.findall(r"\[(\w+)\]", words[1]):
                assert re.search(rf"^{extra} = \[", EXTRAS, re.MULTILINE), extra
        elif program == "python" and words[0].startswith("benchmarks/"):
            script = (ROOT / words[0]).read_text()
            for flag in (word for word in words if word.startswith("--")):
                assert f'"{flag}"' in script, flag
        elif program == "python":
            assert words[0] in {made.file_name for made in PYTHON}
        else:
            pytest.fail(f"{block}: nothing checks {program!r}")


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_snippet_compiles_and_uses_public_names(block):
    ast.parse(block.code)
    used = set(re.findall(r"\brobustkd\.(\w+)(?!\w*\.)", block.code))
    packages = {path.name for path in Path(robustkd.__file__).parent.iterdir() if path.is_dir()}
    assert used - packages <= set(robustkd.__all__)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_every_grid_is_accepted(block, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(block.code)
    assert load_grid(file)


def test_commands_in_prose_exist():
    """In prose as well: `robustkd something`."""
    for page in FOLLOWED:
        text = (ROOT / page).read_text()
        assert set(re.findall(r"`robustkd (\w+)", text)) <= set(cli.app), page


def test_modules_and_files_that_the_pages_name_exist():
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
    for page in (*pages, *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        for module in re.findall(r"python -m (tools\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page.name}: {module}"
        for script in re.findall(r"`(?:python )?((?:benchmarks|tests|src)/[\w/.-]+)", text):
            assert (ROOT / script.rstrip(".")).exists(), f"{page.name}: {script}"


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs/reference/api.md").read_text()
    assert set(re.findall(r"^::: robustkd\.(\w+)$", text, re.MULTILINE)) == set(robustkd.__all__)


INTERNAL = {"Keeper", "Processes", "Safeguard"}
"""Types of arguments of ``distill`` that only the package itself passes."""
AS_SETTINGS = {"DetoxOptions"}
"""Keyword arguments whose documentation is that of a dataclass with the same fields."""


def test_the_api_page_has_every_type_of_an_argument_and_of_a_result():
    text = (ROOT / "docs/reference/api.md").read_text()
    described = set(re.findall(r"^::: robustkd\.(?:[\w.]+\.)?(\w+)$", text, re.MULTILINE))
    functions = [getattr(robustkd, name) for name in robustkd.__all__ if name.islower()]
    hints = [hint for each in functions for hint in get_type_hints(each).values()]
    named = {name for hint in hints for name in _own_types(hint)}
    assert named - INTERNAL - AS_SETTINGS <= described


def _own_types(hint: object) -> set[str]:
    """Names of the classes of this package in an annotation."""
    if isinstance(hint, type) and hint.__module__.startswith("robustkd."):
        return {hint.__name__}
    parts = hint if isinstance(hint, list) else get_args(hint)
    return {name for part in parts for name in _own_types(part)}


@pytest.mark.slow
def test_commands_and_snippets_of_the_pages_run(tmp_path, monkeypatch):
    """Quickstart and guides from above to below, in one folder, with short trainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    everything = blocks("sh", "python", "yaml")
    for block in everything:
        if block.file_name is not None:
            (tmp_path / block.file_name).write_text(block.code)
    shell = [block for block in everything if block.language == "sh" and block.run]
    assert {block.page for block in shell} > {"docs/quickstart.md"}
    for block in shell:
        _run(block, tmp_path)
    for block in PYTHON:
        if block.page in RUN_IN_PYTHON and block.file_name is None:
            exec(block.code, {})  # noqa: S102 (a page of ours)
    _check_tree(tmp_path)


OWN_FILES = [
    block
    for block in SHELL
    if not block.run and "robustkd distill" in block.code and "results" not in block.page
]
"""Commands on files of the reader's own; the quickstart makes the files of all other commands."""


def test_the_guide_to_the_report_has_every_file_of_a_run():
    (tree,) = [block.code for block in blocks("text") if block.code.startswith("my-run\n")]
    guide = (ROOT / "docs/guides/report.md").read_text().partition("## The run folder")[2]
    for name in re.findall(r"^(?:├|└)── ([\w.-]+)$", tree, re.MULTILINE):
        assert re.search(rf"^\|.*`{re.escape(name)}/?`.*\|", guide, re.MULTILINE), name


def test_every_command_is_run_by_a_test_or_installs_and_checks():
    pages = {block.page for block in OWN_FILES}
    assert pages == {"README.md", "docs/index.md", "docs/guides/data.md"}
    for block in SHELL:
        if not (block.run or block in OWN_FILES or "results" in block.page):
            for command in block.commands():
                assert command == ["robustkd", "list"] or command[0] in {"pip", "make"}, block


@pytest.mark.slow
@pytest.mark.parametrize("block", OWN_FILES, ids=str)
def test_commands_on_files_of_the_reader_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = block.commands()[0]
    flags = dict(pairwise(words))
    source = _data_of_a_reader(flags, tmp_path, monkeypatch)
    spec = models.Spec(flags["--arch"], len(source.classes), source.image_shape)
    teacher = models.build(spec, seed=0)
    fit(Supervised(teacher), source, epochs=3, lr=0.02)
    models.save(teacher, tmp_path / flags["distill"])
    _run(block, tmp_path)
    student = models.load(tmp_path / flags["--out"] / "student.safetensors")
    assert student.spec.arch == flags["--student"]


def _data_of_a_reader(
    flags: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> DataSource:
    """Make small data in the form that the command expects, with classes that can be learned."""
    if flags["--data"] == "cifar-10":
        write_cifar(folder / flags["--data-root"], "cifar-10", monkeypatch, by_shade=True)
        return data.load("cifar-10", root=folder / flags["--data-root"])
    if flags["--data"].startswith("hf:"):
        datasets = pytest.importorskip("datasets")
        stored = write_hub(folder / "stored", {"train": 40, "test": 10}, by_shade=True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        monkeypatch.setattr(
            hub, "_builder", lambda *_: datasets.load_dataset_builder(str(stored), revision="main")
        )
        return open_source(flags["--data"], reading=Reading(image_size=64))
    counts = dict.fromkeys(("ash", "elm", "oak"), 12)
    write_splits(folder / "images", dict.fromkeys(("train", "val", "test"), counts))
    return open_source("./images")


def _run(block: Block, folder: Path) -> None:
    for program, *words in block.commands():
        if program == "torchrun":
            start = words.index("robustkd") + 1
            _run_together([program, *words[:start], *_short(words[start:])], folder)
        elif program == "python":
            exec((folder / words[0]).read_text(), {})  # noqa: S102 (a page of ours)
        else:
            assert program == "robustkd"
            try:
                cli.main(_short(words))
            except SystemExit as stop:
                # With one epoch of training, any verdict is right.
                if words[0] not in {"audit", "verify"} or stop.code not in {4, 5, 6}:
                    raise


def _started_once(command: list[str]) -> list[str]:
    """The command that torchrun starts several times, or the command itself."""
    return command[command.index("robustkd") :] if command[0] == "torchrun" else command


def _run_together(command: list[str], folder: Path) -> None:
    """Run a command of torchrun, with the programs beside this Python."""
    beside = {word: str(Path(sys.executable).parent / word) for word in ("torchrun", "robustkd")}
    found = [beside.get(word, word) for word in command]
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(found, cwd=folder, env=threads, check=True, timeout=300)


def _short(words: list[str]) -> list[str]:
    """The same command with one epoch."""
    if words[0] == "distill" and not {"--epochs", "--resume"} & {*words}:
        return [*words, "--epochs", "1"]
    return [
        "1" if before == "--epochs" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _check_tree(folder: Path) -> None:
    """The trees on the pages are what the commands leave behind."""
    trees = [block for block in blocks("text") if "├── " in block.code]
    assert len(trees) >= 3
    for tree in trees:
        root, *lines = tree.code.splitlines()
        place = folder / root
        names = {line[4:] for line in lines if line.startswith(("├── ", "└── "))}
        found = {path.name for path in place.iterdir() if not path.name.startswith(".")}
        assert names <= found, f"{tree}: {names - found} are not there"
        if root != ".":
            assert names == found, f"{tree}: it lacks {found - names}"


def test_blocks_are_found_with_their_mark_and_their_name():
    (made,) = (block for block in PYTHON if block.file_name == "make_example.py")
    assert isinstance(made, Block)
    assert made.run
    (first, *_) = (block for block in SHELL if block.page == "docs/quickstart.md")
    assert first.commands()[0][:3] == ["robustkd", "attack", "ckd"]
