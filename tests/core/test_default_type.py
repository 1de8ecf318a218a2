"""A default type that the user has set in torch changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import robustkd
from robustkd.core.default_type import default_type, type_of, typed_as_network
from robustkd.data import ZoomFlip
from robustkd.data.augment import RandAugmented

DATA = robustkd.load_data("digits", train=40, validation=20, test=20)


def net(seed: int = 0) -> torch.nn.Module:
    return robustkd.build(robustkd.Spec("wrn-10-1", 10, DATA.image_shape), seed=seed)


@pytest.fixture
def doubles() -> Iterator[None]:
    with default_type(torch.float64):
        yield


def test_the_type_is_that_of_the_network():
    @typed_as_network
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
