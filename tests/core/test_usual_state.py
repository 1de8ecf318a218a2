"""Functions compute the same in any mode and with any default type of the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.core.usual_state import default_type, type_of, usual_modes, usual_state
from robustkd.data import ZoomFlip
from robustkd.data.augment import RandAugmented
from robustkd.evaluation.audit import Effort
from robustkd.evaluation.audit.references import (
    make_references,
    search_references,
    train_references,
)
from robustkd.evaluation.measurement import measure
from robustkd.evaluation.verification import verify
from tests.modes import MODES

DATA = robustkd.load_data("digits", train=40, validation=20, test=20)


def net(seed: int = 0) -> torch.nn.Module:
    return robustkd.build(robustkd.Spec("wrn-10-1", 10, DATA.image_shape), seed=seed)


@pytest.fixture
def doubles() -> Iterator[None]:
    with default_type(torch.float64):
        yield


FILES = {"from_dataset", "load_data", "save", "save_detoxified"}
"""Functions that compute nothing with numbers in floating point."""
PUBLIC = [getattr(robustkd, name) for name in robustkd.__all__ if name not in FILES]
COMPUTING = (
    *filter(inspect.isfunction, PUBLIC),
    robustkd.UniversalPerturbations.__init__,
    make_references,
    measure,
    search_references,
    train_references,
    verify,
)


@pytest.mark.parametrize("function", COMPUTING, ids=lambda each: each.__qualname__)
def test_every_function_that_computes_has_the_decorator(function: Callable[..., Any]):
    source = inspect.getsource(inspect.unwrap(function))
    assert source.lstrip().startswith("@usual_state\n")


@pytest.mark.parametrize("mode", MODES.values())
def test_networks_of_any_mode_can_be_trained(mode, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    with mode():
        robustkd.save(net(), file)
        networks = (
            net(),
            robustkd.load(file),
            robustkd.load_teacher(file, arch="wrn-10-1", classes=10, image_shape=DATA.image_shape),
        )
    for network in networks:
        robustkd.distill(network, DATA, epochs=1)


def test_references_are_searched_with_any_default_type(doubles):
    effort = Effort(strengths=(0.5,), steps=1, references=1, margins=1)
    found = search_references([net(), net(1)], DATA, effort)
    assert found.led.dtype == torch.float32


def test_the_type_is_that_of_the_network():
    @usual_state
    def made(network: torch.nn.Module) -> torch.dtype:
        return torch.get_default_dtype()

    assert made(net()) == made(net().half()) == made(torch.nn.Identity()) == torch.float32
    assert made(net().double()) == made(network=net().double()) == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert type_of("a path") == torch.float32


def test_the_default_type_comes_back_after_an_error(doubles):
    with pytest.raises(robustkd.UsageError):
        robustkd.distill(net(), DATA, epochs=0)
    assert torch.get_default_dtype() == torch.float64


def distilled(**changes: object) -> dict[str, torch.Tensor]:
    made = robustkd.distill(net(), DATA, teacher=net(1), epochs=1, **changes)
    return dict(made.student.state_dict())


def test_the_student_does_not_depend_on_it():
    alone = distilled(losses={"ofd": 1.0, "fitnet": 1.0})
    with default_type(torch.float64):
        again = distilled(losses={"ofd": 1.0, "fitnet": 1.0})
    assert all(torch.equal(alone[name], tensor) for name, tensor in again.items())


def test_every_part_of_the_method_runs(doubles):
    found = robustkd.find_perturbations(net(1), DATA, ("tone", "flow"), steps=1)
    assert found.success.dtype == torch.float32
    families = ("warp+generator", "curves")
    hardening = robustkd.UniversalPerturbations(
        10, DATA.image_shape, fixed=found, families=families
    )
    assert {tensor.dtype for tensor in distilled(hardening=hardening).values()} <= {
        torch.float32,
        torch.int64,
    }
    assert robustkd.detoxify(net(1), DATA, steps=1, raises=0).record.accuracy_before <= 1
    for augmentation in (ZoomFlip(), RandAugmented(ZoomFlip())):
        batches = DATA.with_augmentation(augmentation).batches(
            "train", batch_size=8, augment=torch.Generator()
        )
        assert next(batches).images.dtype == torch.float32


@usual_state
def gradient(weight: Tensor) -> Tensor:
    """The gradient of a sum of products, which autocast would round."""
    leaf = weight.clone().requires_grad_()
    (leaf @ leaf).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("mode", [nullcontext, *MODES.values()])
def test_a_decorated_function_does_not_depend_on_the_mode(mode: type[AbstractContextManager[Any]]):
    weight = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    expected = gradient(weight)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert torch.equal(gradient(weight), expected)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.is_autocast_enabled("cpu") is (mode is MODES["autocast"])


def test_autocast_sees_weights_that_were_changed_meanwhile():
    layer, images = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        layer(images)  # autocast keeps the rounded weights
        with usual_modes():
            nn.init.constant_(layer.weight, 1.0)
        assert layer(images).item() == 2.0
