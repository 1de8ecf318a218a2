"""Whole pickled modules give the tensors that their state dict gives, without being built."""

from __future__ import annotations

import io

import pytest
import torch
import torchvision
from torch import nn

from tests.teacher.untrusted.samples import checkpoint, legacy, saved
from tests.teacher.untrusted.test_readers import converted, damaged, keys, same


class Net(nn.Module):
    """Everything that a module can have next to its weights."""

    armed = False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.ModuleDict({"a": nn.PReLU()})])
        self.tied = self.blocks[0]
        self.scale = nn.Parameter(torch.ones(2))
        self.lacking = None
        self.register_parameter("absent", None)
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("cache", torch.ones(5), persistent=False)
        self.register_buffer("nothing", None)
        self.activation = nn.functional.relu
        self.values = [torch.zeros(3), {"config": 3}]
        self.plain = torch.full((2,), 7.0)

    def __setstate__(self, state: dict[str, object]) -> None:
        if Net.armed:
            raise AssertionError("the module was built")
        super().__setstate__(state)


@pytest.mark.parametrize("write", [saved, legacy])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_is_read_as_its_state_dict(write, wrapped, monkeypatch):
    network = Net()
    file = write({"epoch": 1, "model": network} if wrapped else network)
    monkeypatch.setattr(Net, "armed", True)
    contents, found = converted(file)
    assert same(found, dict(network.state_dict()))
    assert [tensor.name for tensor in contents.tensors] == list(network.state_dict())
    assert contents.wrappers == (("model",) if wrapped else ())
    assert "cache" not in found
    assert "tied.weight" in found


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.slow
def test_networks_of_torchvision_and_wrapped_ones(protocol):
    for network in (
        torchvision.models.resnet18(num_classes=3),
        nn.DataParallel(torchvision.models.mobilenet_v3_small(num_classes=3)),
        torchvision.models.googlenet(num_classes=3, init_weights=False),
    ):
        buffer = io.BytesIO()
        torch.save(network, buffer, pickle_protocol=protocol)
        assert same(converted(buffer.getvalue())[1], dict(network.state_dict()))


def test_a_module_beside_its_state_dict():
    network = nn.Linear(2, 3)
    assert keys(saved({"net": network, "state": network.state_dict()})) == ["net", "state"]


def module(state: bytes, memo: bytes = b"") -> bytes:
    return b"ctorch.nn.modules.module\nModule\n)\x81" + memo + b"}(" + state + b"ub"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def parts(modules: bytes, parameters: bytes = b"}", buffers: bytes = b"}") -> bytes:
    return (
        text("_parameters") + parameters + text("_buffers") + buffers + text("_modules") + modules
    )


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (module(parts(b"}X\1\0\0\0ah\0s"), b"q\0"), "has a module with too many parts"),
        (module(parts(b"}" + text("a") + b"K\1s")), "has a module whose child 'a' is not a module"),
        (module(parts(b"}", b"}" + text("w") + b"K\1s")), "has a module whose 'w' is not a tensor"),
        (module(parts(b"]")), "has a module '' that is damaged"),
        (module(parts(b"}K\1Ns")), "has tensors whose names are not text"),
        (module(parts(b"}")), "holds an object of the class 'torch.nn.modules.module.Module' wi"),
        (module(parts(b"}")) + b"}b", "has an invalid pickle: BUILD twice"),
    ],
)
def test_malformed_modules_are_refused(program, says):
    assert damaged(checkpoint(b"\x80\x02" + program + b".")).startswith(says)


@pytest.mark.slow
def test_modules_within_modules_take_no_exponential_time():
    """Each of 60 modules has the one before it twice."""
    program = module(parts(b"}"), b"") + b"q\0"
    for _ in range(60):
        program += b"0" + module(parts(b"}(" + text("a") + b"h\0" + text("b") + b"h\0u")) + b"q\0"
    assert damaged(checkpoint(b"\x80\x02" + program + b".")) == (
        "has a module with too many parts; save its state dict"
    )


def test_a_large_set_that_many_modules_share_takes_no_quadratic_time():
    names = b"c__builtin__\nset\n](" + b"".join(text(str(n)) for n in range(3000)) + b"e\x85Rq\1"
    inner = module(parts(b"}") + text("_non_persistent_buffers_set") + b"h\1")
    children = b"".join(text(str(n)) + inner for n in range(300))
    program = names + b"0" + module(parts(b"}(" + children + b"u"))
    assert damaged(checkpoint(b"\x80\x02" + program + b".")) == (
        "has a module with too many parts; save its state dict"
    )
