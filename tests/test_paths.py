"""Every path argument of the public functions accepts str as well as Path."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import robustkd
from robustkd import attacks, report
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.data import load_folder
from robustkd.report.results import ResultRow, Results
from robustkd.teacher.defences.masks import FeatureMask

pytestmark = pytest.mark.usefixtures("few_digits")

PATHS = {"path", "folder", "out", "root", "teacher"}


def public() -> list[object]:
    functions = [getattr(robustkd, name) for name in robustkd.__all__]
    functions += [attacks.load_trigger, attacks.save_trigger, report.read, report.write_html]
    return [*filter(inspect.isfunction, functions), load_folder]


@pytest.mark.parametrize("function", public(), ids=lambda function: function.__name__)
def test_a_path_is_annotated_as_text_or_path(function):
    for name, parameter in inspect.signature(function).parameters.items():
        if name in PATHS and "Path" in str(parameter.annotation):
            assert "str" in str(parameter.annotation), f"{function.__name__}({name})"


def test_models_triggers_and_results_are_written_and_read_by_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = robustkd.build(robustkd.Spec("wrn-10-1", 3, (1, 8, 8)), seed=0)
    robustkd.save(model, "model.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(robustkd.load("model.safetensors")(images), model.eval()(images))
    location = "network.bn"
    cleaned = robustkd.DetoxifiedTeacher(
        model, {location: FeatureMask(torch.zeros(64, 2, 2), cap=0.5)}
    )
    robustkd.save_detoxified(cleaned, "cleaned.safetensors")
    assert robustkd.load_detoxified("cleaned.safetensors").locations == (location,)
    trigger = MaskedPattern(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    attacks.save_trigger(trigger, 1, "trigger.safetensors")
    assert attacks.load_trigger("trigger.safetensors")[1] == 1
    row = ResultRow("digits", "a to b", "none", "ofd", 0, 0.5, None, None, 9, 1.0)
    Results((row,), {}, {}, {}).write(Path("results.json"))
    assert report.read(".").runs == (row,)
