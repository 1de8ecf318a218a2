"""The user's own code is built if the user names it, and never because a file does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from robustkd.core.errors import InputError, UsageError
from robustkd.models import OwnCode, Spec, build, check_name, load, save
from robustkd.teacher.defences import masks
from robustkd.teacher.read import load_teacher

CODE = """
from pathlib import Path
import torch
from torch import nn

Path("imported").touch()
number = 3

def net(num_classes, in_chans=3):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )

class Nets:
    @staticmethod
    def sized(num_classes, img_size):
        return nn.Sequential(nn.Flatten(), nn.Linear(img_size[0] * img_size[1], num_classes))

def nothing(num_classes):
    return None

class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)), x

def pair(num_classes, img_size):
    return Two(img_size[0] * img_size[1], num_classes)

def one_more(num_classes, img_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(img_size[0] * img_size[1], num_classes + 1))

class Picky(nn.Linear):
    def forward(self, x):
        if x.max() == 0:
            raise ValueError("an empty image")
        return super().forward(x.flatten(1))

class Counting(nn.Linear):
    def forward(self, x):
        self.register_buffer("seen", x.new_zeros(1))
        return super().forward(x.flatten(1))

def counting(num_classes, img_size):
    return Counting(img_size[0] * img_size[1], num_classes)

def picky(num_classes, img_size):
    return Picky(img_size[0] * img_size[1], num_classes)

def by_values(num_classes):
    widths = torch.linspace(4, 8, 2)
    first, second = (int(width.numpy()) for width in widths)
    return nn.Sequential(
        nn.Conv2d(1, first, 3), nn.Conv2d(first, second, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(int(widths[1].item()), num_classes),
    )

def stubborn(classes):
    return net(classes)

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's module in it."""
    (tmp_path / "users_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users_nets", None)


def own(name: str) -> OwnCode:
    return OwnCode(f"users_nets:{name}")


def test_a_callable_gets_what_its_signature_names():
    model = build(Spec(own("net"), 5, SHAPE), seed=0)
    assert model(torch.rand(2, *SHAPE)).shape == (2, 5)
    assert build(Spec(own("Nets.sized"), 5, SHAPE), seed=0)(torch.rand(2, *SHAPE)).shape == (2, 5)


def test_a_network_that_does_not_accept_every_image_is_built():
    model = build(Spec(own("picky"), 5, SHAPE), seed=0)
    assert model.training
    assert model(torch.rand(2, *SHAPE)).shape == (2, 5)


def test_code_that_needs_values_of_tensors_is_built_for_a_file(tmp_path):
    model = build(Spec(own("by_values"), 5, SHAPE), seed=0)
    torch.save(model.network.state_dict(), tmp_path / "t.pt")
    read = load_teacher(
        tmp_path / "t.pt",
        arch=own("by_values"),
        classes=5,
        image_shape=SHAPE,
        mean=(0.5,),
        std=(0.5,),
    )
    assert torch.equal(read.network[0].weight, model.network[0].weight)


def test_the_trial_leaves_the_network_as_it_was():
    model = build(Spec(own("counting"), 5, SHAPE), seed=0)
    assert not any(name.endswith("seen") for name in model.state_dict())


def test_code_named_in_a_file_never_runs(folder):
    """A plain string of that form is refused before anything is imported."""
    model = build(Spec(own("net"), 5, SHAPE), seed=0).eval()
    save(model, folder / "m")
    masked = masks.DetoxifiedTeacher(
        model, {"network.0": masks.FeatureMask(torch.zeros(4, 6, 6), cap=0.5)}
    )
    masks.save_detoxified(masked, folder / "d")
    sys.modules.pop("users_nets")
    (folder / "imported").unlink()
    text = (
        "architecture 'users_nets:net' is code, which runs only where you name it yourself: with "
        "--arch or --student, or as models.OwnCode in Python"
    )
    for read, name in ((load, "m"), (masks.load_detoxified, "d")):
        path = folder / name
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path} says that its architecture is 'users_nets:net', which is code; if it is your "
            "own, name it with --arch, or as models.OwnCode in Python"
        )
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        build(Spec("users_nets:net", 5, SHAPE), seed=0)
    asked = json.loads(json.dumps(asdict(model.spec)))
    assert type(asked["arch"]) is str
    assert not (folder / "imported").exists()
    assert "users_nets" not in sys.modules
    images = torch.rand(2, *SHAPE)
    again = load(folder / "m", arch=own("net"))
    assert torch.equal(again(images), model(images))
    teacher = load_teacher(folder / "m", arch=own("net"), classes=5, image_shape=SHAPE)
    assert torch.equal(teacher(images), model(images))
    cleaned = masks.load_detoxified(folder / "d", arch=own("net"))
    assert torch.equal(cleaned(images), masked(images))


def test_the_named_architecture_must_be_that_of_the_file(folder):
    save(build(Spec(own("net"), 5, SHAPE), seed=0), folder / "m")
    with pytest.raises(InputError, match="is a model of architecture 'users_nets:net', not 'wrn-"):
        load(folder / "m", arch="wrn-10-1")


def test_no_file_in_the_folder_replaces_an_installed_module(folder):
    (folder / "torchvision.py").write_text("raise SystemExit")
    (folder / "sklearn.py").write_text("raise SystemExit")
    build(Spec(own("net"), 5, SHAPE), seed=0)
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such:net", "no_such:net cannot be imported: No module named 'no_such'"),
        ("users_nets:nett", "users_nets:nett cannot be imported: module 'users_nets' has no"),
        ("users_nets:number", "users_nets:number is of type int; expected a callable"),
        ("users_nets:nothing", "users_nets:nothing returns NoneType; expected an nn.Module"),
        ("users_nets:pair", "the network of users_nets:pair returns tuple; expected a tensor of"),
        (
            "users_nets:one_more",
            "the network of users_nets:one_more maps 2 images to a tensor of shape (2, 6);",
        ),
        ("users_nets:stubborn", "users_nets:stubborn cannot be called with num_classes=: "),
        ("users_nets:lazy", "the shape of '1.weight' is not known, since its module is a lazy one"),
    ],
)
def test_refusals_say_what_is_wrong(name, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}"):
        build(Spec(OwnCode(name), 5, SHAPE), seed=0)


@pytest.mark.parametrize(
    "name", ["net", "users_nets:", ":net", "a b:net", "a:net()", "a:b:c", "a:"]
)
def test_another_form_is_refused(name):
    text = f"own code is {name!r}; expected package.module:callable"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        OwnCode(name)


def test_the_name_itself_imports_nothing(folder):
    check_name(own("net"))
    assert not (folder / "imported").exists()
