"""Equal networks with other names of layers are matched by order; other networks are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustkd.core.errors import InputError
from robustkd.models import Spec, build
from robustkd.teacher.facts import Teacher
from robustkd.teacher.read import read_teacher

SIZE = 32


def fresh(arch: str, classes: int = 3) -> nn.Module:
    network = build(Spec(arch, classes, (3, SIZE, SIZE)), seed=3).network
    network(torch.rand(8, 3, SIZE, SIZE))
    return network.eval()


def renamed(network: nn.Module, *changes: tuple[str, str], last: str = "") -> dict[str, Tensor]:
    """A state dict with parts of the names changed; layers of the name ``last`` end each block."""
    found: dict[str, Tensor] = {}
    waiting: dict[str, Tensor] = {}
    block = ""
    for name, tensor in network.state_dict().items():
        now = name.split(f".{last}")[0] if last and f".{last}" in name else block
        if waiting and not name.startswith(block):
            found |= waiting
            waiting = {}
        block = now
        other = name
        for before, after in changes:
            other = other.replace(before, after)
        (waiting if last and f".{last}" in name else found)[other] = tensor
    return found | waiting


def read(path: Path, content: object, arch: str, classes: int = 3) -> Teacher:
    torch.save(content, path)
    options = {"arch": arch, "classes": classes, "image_shape": (3, SIZE, SIZE)}
    return read_teacher(path, **options, mean=(0.5,) * 3, std=(0.5,) * 3)


ResNet = (("downsample", "shortcut"), ("fc.", "linear."))
WideResNet = (
    ("stem", "conv1"),
    ("groups.0.", "block1.layer."),
    ("groups.1.", "block2.layer."),
    ("groups.2.", "block3.layer."),
    ("shortcut", "convShortcut"),
    ("bn.", "bn1."),
    ("head", "fc"),
)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("resnet-18", ResNet),
        ("preactresnet-18", (("layer", "stage"), ("linear", "classifier.fc"))),
        ("wrn-16-2", WideResNet),
        ("torchvision/densenet121", ((".norm1.", ".norm.1."), (".conv1.", ".conv.1."))),
    ],
)
def test_other_names_of_an_equal_network_are_matched(arch, changes, tmp_path):
    network = fresh(arch)
    content = renamed(network, *changes)
    assert content.keys() != network.state_dict().keys()
    found = read(tmp_path / "t.pt", {"epoch": 1, "model": content}, arch)
    assert found.file.by_order
    assert found.file.key == "model"
    expected = network.state_dict()
    state = found.model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("strays", [("num_batches_tracked",), ("nothing",)])
def test_shortcuts_may_come_first_or_last_and_counters_lack(strays, tmp_path):
    """In our wide networks they come last; here first, as some define them."""
    network = fresh("wrn-16-2")
    content: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in network.state_dict().items():
        block = ".".join(name.split(".")[:3]) if name.startswith("groups") else name
        inside = blocks.setdefault(block, {})
        other = name.replace("groups", "stages").replace("shortcut", "skip")
        blocks[block] = {other: tensor, **inside} if "skip" in other else {**inside, other: tensor}
    for inside in blocks.values():
        content |= {n: t for n, t in inside.items() if n.split(".")[-1] not in strays}
    found = read(tmp_path / "t.pt", content, "wrn-16-2")
    assert found.file.by_order
    images = torch.rand(3, 3, SIZE, SIZE)
    expected = network((images - 0.5) / 0.5)
    torch.testing.assert_close(found.model(images), expected)


def test_names_that_fit_are_not_matched_by_order(tmp_path):
    assert not read(tmp_path / "t.pt", fresh("resnet-8").state_dict(), "resnet-8").file.by_order


def test_another_number_of_classes_is_reported(tmp_path):
    content = renamed(fresh("resnet-18", classes=7), *ResNet)
    with pytest.raises(InputError, match="is a model of 7 classes; the data has 3: use the data"):
        read(tmp_path / "t.pt", content, "resnet-18")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {n: t for n, t in s.items() if "layer4.1.conv2" not in n},
        lambda s: s | {"further.weight": torch.ones(3)},
        lambda s: {n: t[:, :1] if n == "conv1.weight" else t for n, t in s.items()},
        lambda s: {n.replace("conv1.weight", "conv1.kernel"): t for n, t in s.items()},
        lambda s: dict(reversed(s.items())),
    ],
)
def test_other_sequences_are_refused(change, tmp_path):
    content = change(renamed(fresh("resnet-18"), *ResNet))
    with pytest.raises(InputError, match="does not fit the architecture 'resnet-18'"):
        read(tmp_path / "t.pt", content, "resnet-18")


def test_safetensors_have_no_order(tmp_path):
    """Their writer sorts tensors, so that the order is not that of the network."""
    content = renamed(fresh("resnet-18"), *ResNet)
    save_file({n: t.contiguous() for n, t in content.items()}, tmp_path / "t.safetensors")
    options = {"arch": "resnet-18", "classes": 3, "image_shape": (3, SIZE, SIZE)}
    with pytest.raises(InputError, match="does not fit the architecture 'resnet-18'"):
        read_teacher(tmp_path / "t.safetensors", **options, mean=(0.5,) * 3, std=(0.5,) * 3)
