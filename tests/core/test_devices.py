"""The device of the command line is used, even if there is a GPU."""

from __future__ import annotations

import os
import re

import pytest
import torch

from robustkd.cli.flags import choose_device
from robustkd.core.devices import default_device
from robustkd.core.errors import UsageError

VARIABLES = ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A machine with a GPU, as far as torch's answer goes, and its own environment."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: cuda)


@pytest.mark.parametrize(("device", "kind"), [("auto", "cuda"), ("cpu", "cpu")])
def test_the_cpu_is_used_if_requested(device, kind):
    choose_device(device, None)
    assert default_device().type == kind


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", ""])
def test_unknown_devices_are_refused(device):
    message = f"--device is {device!r}; expected auto, cpu, cuda, cuda:NUMBER or mps"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        choose_device(device, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_refused():
    with pytest.raises(
        UsageError, match=r"^--device is 'cuda:3'; this machine has no such device: leave"
    ):
        choose_device("cuda:3", None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_threads_are_those_of_torch():
    before = torch.get_num_threads()
    try:
        choose_device("auto", 1)
        assert torch.get_num_threads() == 1
        for count in (0, 1025, 100_000):  # the last one would end in a segmentation fault
            with pytest.raises(UsageError, match=rf"^--threads is {count}; expected 1 to 1024$"):
                choose_device("auto", count)
    finally:
        torch.set_num_threads(before)
