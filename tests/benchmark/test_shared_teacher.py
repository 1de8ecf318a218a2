"""Clean teachers of a grid: trained once for all attacks that start from the same one."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from robustkd.benchmark.attacked_teachers import run_attack
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import Setting, TeacherCell
from robustkd.benchmark.run_cell import make_teacher
from robustkd.training.precision import mixed

run_cell = import_module("robustkd.benchmark.run_cell")
SETTING = Setting("digits", {"train": 96, "validation": 40, "test": 40}, threads=1)
CELL = TeacherCell(SETTING, "wrn-10-1", "tone", {"epochs": 1, "trigger_steps": 2})


@pytest.fixture
def trainings(monkeypatch) -> list[int]:
    """Number of images of each clean teacher that is trained."""
    seen = []
    train = run_cell.train_teacher

    def counting(build, data, teaching):
        seen.append(data.size("train"))
        return train(build, data, teaching)

    monkeypatch.setattr(run_cell, "train_teacher", counting)
    return seen


def test_attacks_with_the_same_clean_teacher_train_it_once(tmp_path, trainings):
    store = Store(tmp_path)
    for attack in ("tone", "light", "ckd"):
        make_teacher(replace(CELL, attack=attack), store)
    assert trainings == [96]
    make_teacher(replace(CELL, setting=replace(SETTING, seed=1)), store)
    make_teacher(replace(CELL, attacking={**CELL.attacking, "epochs": 2}), store)
    make_teacher(replace(CELL, arch="wrn-10-2"), store)
    assert len(trainings) == 4


def test_a_teacher_trained_on_poisoned_images_is_not_shared(tmp_path, trainings):
    make_teacher(replace(CELL, attack="blend", attacking={"epochs": 1}), Store(tmp_path))
    assert trainings == []


@pytest.mark.parametrize(
    ("attack", "precision"), [("tone", "no"), ("ckd", "no"), ("latent", "bf16"), ("backweak", "no")]
)
def test_a_shared_clean_teacher_gives_the_same_backdoored_teacher(tmp_path, attack, precision):
    setting = replace(SETTING, precision=precision)
    store, cell = Store(tmp_path), replace(CELL, attack=attack, setting=setting)
    with mixed(precision, torch.device("cpu")):
        alone = run_attack(
            attack,
            lambda arch, seed: run_cell._build(arch, setting, seed),
            run_cell._source(setting),
            arch=cell.arch,
            surrogate=cell.arch,
            target=0,
            seed=0,
            settings=cell.attacking,
            rehearsal=None,
        )
    for _ in range(2):  # the first makes the clean teacher, the second reads it
        made, _ = make_teacher(cell, store)
        pairs = zip(
            alone.teacher.state_dict().values(), made.teacher.state_dict().values(), strict=True
        )
        assert all(torch.equal(one, other) for one, other in pairs)
        assert made.record == alone.record
