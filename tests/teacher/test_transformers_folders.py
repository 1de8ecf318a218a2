"""Folders that transformers saved are recognised; their names of tensors are not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustkd.core.errors import InputError, UsageError
from robustkd.pipeline.opening import architecture
from robustkd.teacher.preprocessing import transformers_advice
from robustkd.teacher.read import load_teacher

CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "id2label": {"0": "a", "1": "b"},
    "transformers_version": "5.24.0",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights = {"resnet.embedder.embedder.convolution.weight": torch.ones(8, 3, 3, 3)}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def advice(folder: Path) -> str:
    return (
        f"{folder / 'config.json'} is one of transformers (ResNetForImageClassification), whose "
        "names of tensors are not read: give --arch MODULE:FUNCTION with a function that builds "
        "this network, as 'Models of transformers' in docs/guides/networks.md shows"
    )


@pytest.mark.parametrize("flag", ["--arch", "--teacher-arch"])
def test_without_an_architecture(folder, flag):
    with pytest.raises(UsageError) as caught:
        architecture(folder, None, flag=flag)
    expected = advice(folder).replace("--arch", flag)
    assert str(caught.value) == f"{flag} is missing; {expected}"


def test_with_an_architecture_whose_names_differ(folder):
    with pytest.raises(InputError) as caught:
        load_teacher(folder, arch="resnet-18", classes=2, image_shape=(3, 32, 32))
    said = str(caught.value)
    assert "model.safetensors does not fit the architecture 'resnet-18': " in said
    assert said.endswith(f"; {advice(folder)}")


def test_the_place_of_the_guide_exists():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "networks.md"
    assert "## Models of transformers\n" in guide.read_text()


@pytest.mark.parametrize(
    "content",
    [
        {"architecture": "resnet18"},
        {"architectures": ["Net"]},  # some other training
        {"model_type": 3},
        {"architectures": [], "transformers_version": "5"},
        {"architectures": [7], "transformers_version": "5"},
    ],
)
def test_other_configurations_are_not_of_transformers(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert transformers_advice(tmp_path / "model.safetensors") == ""


def test_a_hostile_name_is_quoted(tmp_path):
    content = CONFIG | {"architectures": ["\x1b[2J" + "x" * 1000]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    said = transformers_advice(tmp_path / "model.safetensors")
    assert said.isprintable()
    assert len(said) < 500
