"""Buffers that an architecture computes itself, and outputs that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkd import data, models
from robustkd.core.errors import InputError
from robustkd.models import OwnCode, Spec, build, pixel_statistics
from robustkd.teacher.check import check_accuracy
from robustkd.teacher.read import load_teacher
from tests.teacher.untrusted.samples import saved


class Indexed(nn.Module):
    """A network with buffers of every kind, one of which is an index into a table."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, num_classes))
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("index", torch.tensor([0, 3, 1]))
        self.register_buffer("grid", torch.linspace(0, 1, 5))
        self.register_buffer("noise", torch.randn(3))
        self.register_buffer("memory", torch.zeros(3))
        self.register_buffer("step", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).mean((1, 2, 3))[:, None] * self.table[self.index].sum(0)


ARCH = OwnCode(f"{__name__}:Indexed")
OPTIONS = {"arch": ARCH, "classes": 3, "image_shape": (1, 8, 8)}
SPEC = Spec(ARCH, 3, (1, 8, 8))


def state(**changes: Tensor) -> dict[str, Tensor]:
    return dict(build(SPEC, seed=5).network.state_dict()) | changes


def teacher(path: Path, content: dict[str, Tensor]) -> models.Classifier:
    path.write_bytes(saved(content))
    return load_teacher(path, **OPTIONS, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", torch.tensor([0, 3, 4])),
        ("index", torch.tensor([0, 3, -9])),
        ("index", torch.tensor([0, 3, 2**40])),
        ("index", torch.tensor([3, 3, 1])),
        ("grid", torch.linspace(0, 2, 5)),
        ("grid", torch.full((5,), 1e38)),
    ],
)
def test_computed_buffers_must_have_their_computed_values(name, value, tmp_path):
    path = tmp_path / "teacher.pt"
    with pytest.raises(InputError) as caught:
        teacher(path, state(**{name: value}))
    assert str(caught.value) == (
        f"{path} has other values in 'network.{name}' than its architecture computes; it is "
        "damaged, or made for another input size"
    )
    ours = build(SPEC, seed=5)
    ours.network.load_state_dict(state(**{name: value}))
    models.save(ours, tmp_path / "ours.safetensors")
    with pytest.raises(InputError, match=f"has other values in 'network.{name}' than"):
        models.load(tmp_path / "ours.safetensors", arch=ARCH)


def test_buffers_changed_by_training_may_differ(tmp_path):
    trained = state(
        noise=torch.ones(3),
        memory=torch.arange(3.0),
        step=torch.tensor(900),
        table=torch.ones(4, 3),
    )
    trained["norm.running_mean"] = torch.ones(1)
    trained["norm.num_batches_tracked"] = torch.tensor(7)
    found = teacher(tmp_path / "teacher.pt", trained).network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in trained.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computed_buffers_may_be_saved_in_another_precision(dtype, tmp_path):
    rounded = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state().items()}
    teacher(tmp_path / "teacher.pt", rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tables_of_integers_may_be_saved_as_float_numbers(dtype, tmp_path):
    floats = {name: tensor.to(dtype) for name, tensor in state().items()}
    found = teacher(tmp_path / "teacher.pt", floats).network
    assert found.index.tolist() == [0, 3, 1]
    assert found.index.dtype == torch.int64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3, 4], "has other values in 'network.index' than its architecture computes"),
        ([0, 3, 1.5], "1 mistyped (index torch.float32 for torch.int64)"),
        ([0, 3, torch.nan], "1 mistyped (index torch.float32 for torch.int64)"),
    ],
)
def test_tables_of_integers_saved_as_float_numbers_are_compared(values, message, tmp_path):
    with pytest.raises(InputError) as caught:
        teacher(tmp_path / "teacher.pt", state(index=torch.tensor(values).half()))
    assert message in str(caught.value)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_outputs_that_are_not_finite_are_reported(split):
    """A head scaled by 1e38 is finite, but its outputs are not."""
    clean = data.load("digits", train=60, validation=40, test=20)
    mean, std = pixel_statistics(clean)
    model = build(Spec("wrn-10-1", 10, (1, 16, 16), mean, std), seed=0).eval()
    model.network.head.weight.data *= 1e38
    model.network.head.bias.data.fill_(1e38)
    with pytest.raises(InputError) as caught:
        check_accuracy(model, clean, Path("teacher.pt"))
    assert str(caught.value) == (
        "teacher teacher.pt: its outputs are not finite on the validation images of digits; "
        "expected weights that were trained on such images"
    )

    class Once(nn.Module):
        """Not finite on some of the images alone."""

        def forward(self, images: Tensor) -> Tensor:
            bad = len(images) == {"train": 60, "validation": 40}[split]
            return torch.full((len(images), 10), torch.nan if bad else 0.0)

    named = {"train": "training"}.get(split, split)
    with pytest.raises(InputError, match=f"not finite on the {named} images of digits"):
        check_accuracy(Once(), clean, Path("teacher.pt"))
