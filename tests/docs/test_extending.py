"""The recipes for an attack, a defence and a family work as they stand on the page."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from robustkd import data, models
from robustkd.attacks import Attack, Teaching
from robustkd.student.families import FAMILIES, Family
from robustkd.student.hardening import UniversalPerturbations
from robustkd.student.safeguards import SAFEGUARDS
from robustkd.teacher.defences.base import Defence
from robustkd.teacher.defences.registry import DEFENCES
from robustkd.teacher.defences.tuning import Tuning
from tests.docs.pages import ROOT, blocks

BLOCKS = {block.file_name: block.code for block in blocks("python")}
DIGITS = data.load("digits", train=40, validation=20, test=20)


def defined(file_name: str) -> dict[str, Any]:
    """The names that a block of the page defines, as a module would."""
    names: dict[str, Any] = {"__name__": file_name.removesuffix(".py")}
    exec(compile(BLOCKS[file_name], file_name, "exec", dont_inherit=True), names)  # noqa: S102 (ours)
    return names


def network(seed: int) -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DIGITS.image_shape), seed=seed)


def test_the_attack_of_the_page_implants_a_backdoor():
    attack = defined("faint_blend.py")["FaintBlend"](rate=0.5)
    assert isinstance(attack, Attack)
    made = attack(lambda: network(0), DIGITS, target=3, teaching=Teaching(epochs=1, seed=0))
    images = next(DIGITS.batches("test", batch_size=20)).images
    assert made.teacher(made.trigger(images)).shape == (20, 10)
    assert made.target == 3
    assert made.record == {"rate": 0.5}


def test_the_defence_of_the_page_changes_the_head_alone():
    defence = defined("head_tuning.py")["HeadTuning"](Tuning(epochs=1, batch_size=20, lr=0.1))
    assert isinstance(defence, Defence)
    given = network(1)
    cleaned = defence(given, DIGITS, seed=0)
    before, after = given.state_dict(), cleaned.network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert len(changed) == 2
    assert all(name.endswith((".weight", ".bias")) for name in changed)
    assert all(weight.requires_grad for weight in cleaned.network.parameters())


def test_the_page_names_every_method_of_a_family():
    page = (ROOT / "docs/guides/extending.md").read_text(encoding="utf-8")
    names = [name for name in vars(Family) if not name.startswith("_")]
    assert {"advance", "bound", "forget"} <= set(names)
    assert all(f"`{name}(" in page for name in names)


def test_the_family_of_the_page_can_be_hardened_against(monkeypatch):
    monkeypatch.setitem(FAMILIES, "inversion", FAMILIES["flow"])  # removed again after the test
    names = defined("inversion.py")
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(names["inverted"](images, torch.zeros(6, 1, 1, 1)), images)
    family = names["make_inversion"](10, (1, 8, 8), torch.Generator().manual_seed(0))
    toward = torch.arange(6)
    assert (family(images, toward) - images).abs().max() <= 1 / 3 + 1e-6
    perturbations = UniversalPerturbations(
        10, (1, 8, 8), epsilon=0.0, mass=0.0, families=("inversion",)
    )
    perturbations.begin(1)
    copies = perturbations.perturb(images, toward)
    assert len(copies.images) > len(images)


def test_the_page_of_the_defences_has_every_row_of_the_registry():
    page = (ROOT / "docs/guides/defences.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \|$", page, re.MULTILINE)
    cleaning, within = rows[: len(DEFENCES)], rows[len(DEFENCES) :]
    assert cleaning == [(name, row.summary, row.source) for name, row in DEFENCES.items()]
    sources = [(name, source) for name, _, source in within]
    assert sources == [(name, row.source) for name, row in SAFEGUARDS.items()]


@pytest.mark.parametrize("name", ["faint_blend.py", "head_tuning.py", "inversion.py"])
def test_every_recipe_has_its_file(name):
    assert name in BLOCKS
