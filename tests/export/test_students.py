"""Four kinds of networks, briefly trained, through the whole export."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from robustkd import data, models
from robustkd.data import InMemory
from robustkd.export import FILES, LEAST_AGREEMENT, export_student
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit


def sized(size: int, channels: int) -> InMemory:
    """Digits of another size, as grey or as colour images."""
    source = data.load("digits", train=400, validation=150, test=150)

    def changed(images: torch.Tensor) -> torch.Tensor:
        wide = F.interpolate(images.float(), (size, size), mode="nearest")
        return wide.byte().expand(-1, channels, -1, -1).contiguous()

    held = {
        split: getattr(source, split)._replace(images=changed(getattr(source, split).images))
        for split in ("train", "validation", "test")
    }
    return replace(source, **held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "size", "channels", "lr"),
    [
        ("wrn-10-1", 16, 1, 0.1),
        ("mobilenet-v2", 32, 3, 0.02),
        ("timm/test_efficientnet", 32, 3, 0.05),
        ("timm/test_vit", 64, 1, 0.02),
        ("torchvision/shufflenet_v2_x0_5", 32, 1, 0.02),
    ],
)
def test_every_kind_of_student_is_exported(arch, size, channels, lr, tmp_path):
    source = sized(size, channels)
    student = models.build(models.spec_for(arch, source), seed=0)
    fit(Supervised(student), source, epochs=3, batch_size=32, lr=lr)
    found = export_student(student, source, tmp_path / "out")
    assert found["parity"]["onnx"]["agreement"] >= LEAST_AGREEMENT
    assert found["parity"]["onnx"]["largest_difference"] < 1e-2
    assert found["measured"]["onnx"]["acc"] == pytest.approx(
        found["measured"]["torch"]["acc"], abs=0.01
    )
    assert any(row["n"] for row in found["int8"]["tried"])
    library = arch.startswith(("timm/", "torchvision/"))
    assert ("state_dict" in found["files"]) is library
    if library:
        plain = load_file(tmp_path / "out" / FILES["state_dict"])
        assert plain.keys() == student.network.state_dict().keys()
