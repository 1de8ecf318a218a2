"""From a checkpoint that plain PyTorch saved, and a folder of images, to a student."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, ToTensor

from robustkd import cli, models
from tests.data.images.image_files import write_splits

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "plain_teacher.py"
COUNTS = {"train": {"dark": 48, "light": 48}, "val": {"dark": 8, "light": 8}}
MEAN, STD = (0.286, 0.286, 0.286), (0.353, 0.353, 0.353)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of images, and the teacher that the outside script trained on it."""
    root = tmp_path_factory.mktemp("outside")
    folder = write_splits(root / "images", {**COUNTS, "test": COUNTS["val"]}, size=28)
    teacher = root / "teacher.pt"
    arguments = ["", folder, "--out", teacher, "--trigger", root / "trigger.pt"]
    arguments += ["--target", "light", "--epochs", 14, "--batch-size", 16]
    spec = importlib.util.spec_from_file_location("plain_teacher", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(argument) for argument in arguments])
        spec.loader.exec_module(script)
        script.main()
    return folder, teacher


def plain_accuracy(folder: Path, teacher: Path) -> float:
    """As the teacher's own project would measure it."""
    network = nn.DataParallel(resnet18(num_classes=2))
    network.load_state_dict(torch.load(teacher, weights_only=True))
    network.eval()
    test = ImageFolder(folder / "test", Compose([ToTensor(), Normalize(MEAN, STD)]))
    with torch.inference_mode():
        said = network(torch.stack([image for image, _ in test])).argmax(1)
    return (said == torch.tensor(test.targets)).double().mean().item()


def test_the_training_script_does_not_use_robustkd():
    assert "import robustkd" not in SCRIPT.read_text()
    assert "from robustkd" not in SCRIPT.read_text()


@pytest.mark.slow
def test_a_teacher_from_outside_becomes_a_student(made, tmp_path, capsys):
    folder, teacher = made
    state = torch.load(teacher, weights_only=True)
    assert zipfile.is_zipfile(teacher)
    assert all(name.startswith("module.") for name in state)
    out = tmp_path / "run"
    command = ["distill", teacher, "--arch", "torchvision/resnet18", "--data", folder]
    command += ["--student", "wrn-10-1", "--out", out, "--epochs", 1, "--batch-size", 16]
    command += ["--mean", *MEAN, "--std", *STD]
    cli.main([str(word) for word in command])
    assert "could not be measured" in " ".join(capsys.readouterr().out.split())
    results = json.loads((out / "results.json").read_text())
    facts = results["records"]["teacher_file"]
    assert (facts["format"], facts["wrappers"]) == ("torch zip", ["module."])
    assert (facts["matched"], facts["ignored"]) == (len(state), [])
    assert facts["normalisation"] == "given by the user"
    assert results["records"]["classes"] == ["dark", "light"]
    given, student = results["runs"]
    assert given["acc"] == plain_accuracy(folder, teacher)
    assert (given["n_acc"], student["method"], student["asr"]) == (16, "default", None)
    assert models.load(out / "student.safetensors").spec.image_shape == (3, 28, 28)
