"""What every family of transformations promises to the hardening that drives it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.student.families import FAMILIES, Chain, Family, make_family, members_of
from robustkd.student.families.generator import generate
from robustkd.student.hardening import UniversalPerturbations

CLASSES, SHAPE = 3, (3, 12, 10)
IMAGES = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(0))
TOWARD = torch.tensor([0, 2, 2, 0, 2, 0])


def made(name: str) -> nn.Module:
    return make_family(name, CLASSES, SHAPE, torch.Generator().manual_seed(1))


def parts(family: nn.Module) -> list[nn.Module]:
    return list(family.families) if isinstance(family, Chain) else [family]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_images_stay_images_and_the_input_is_left_alone(name):
    family, before = made(name), IMAGES.clone()
    changed = family(IMAGES, TOWARD)
    assert isinstance(family, Family)
    assert changed.shape == IMAGES.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, IMAGES)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_step_goes_up_the_gradient_and_leaves_unused_members_alone(name):
    family, goal = made(name), torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(2))

    def score() -> torch.Tensor:
        return -(family(IMAGES, TOWARD) - goal).square().mean()

    first = float(score().detach())
    unused = [part.members[1].clone() for part in parts(family)]
    for _ in range(5):
        score().backward()
        with torch.no_grad():
            family.advance(1.0)
    assert float(score().detach()) > first
    for part, before in zip(parts(family), unused, strict=True):
        assert torch.equal(part.members[1], before)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_members_never_leave_their_bound(name, scale):
    family = made(name)
    for _ in range(30):
        family(IMAGES, TOWARD).sum().backward()
        with torch.no_grad():
            family.advance(scale)
    family.bound(scale)
    for part in parts(family):
        assert (part.members.abs() <= scale * part.limit + 1e-6).all()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_state_of_a_family_restores_it(name):
    family = made(name)
    family(IMAGES, TOWARD).sum().backward()
    with torch.no_grad():
        family.advance(1.0)
    again = make_family(name, CLASSES, SHAPE, torch.Generator().manual_seed(9))
    again.load_state_dict(family.state_dict())
    assert torch.equal(again(IMAGES, TOWARD), family(IMAGES, TOWARD))


def test_a_generator_of_zero_changes_nothing_and_no_pixel_changes_by_more_than_its_bound():
    size = parts(made("generator"))[0].members[0].numel()
    assert torch.equal(generate(IMAGES, torch.zeros(6, size), 0.35, 8), IMAGES)
    most = generate(IMAGES, torch.ones(6, size), 0.35, 8) - IMAGES
    assert most.abs().max() <= 0.35 + 1e-6


def test_every_image_has_the_generator_of_its_class():
    family = made("generator")
    together = family(IMAGES, TOWARD)
    for row in range(len(IMAGES)):
        alone = family(IMAGES[row : row + 1], TOWARD[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_hardening_takes_families_after_additions_and_patterns():
    plain = UniversalPerturbations(CLASSES, SHAPE, seed=3)
    more = UniversalPerturbations(CLASSES, SHAPE, seed=3, families=("generator", "warp"))
    assert [type(family).__name__ for family in members_of(more.families)] == [
        *("Ball", "Patch", "Bounded", "Chain")
    ]
    # The first members of the first families do not depend on how many follow.
    assert torch.equal(plain.families[0].delta, more.families[0].delta)
    seen, toward = more.perturb(IMAGES, torch.arange(6) % 3)
    assert len(seen) == 2 * len(IMAGES)
    seen.sum().backward()
    more.advance()
    assert (toward != torch.arange(6) % 3).all()


def test_an_unknown_family_is_named_with_the_nearest():
    message = "unknown family 'warps'; did you mean 'warp'?"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        UniversalPerturbations(CLASSES, SHAPE, families=("warps",))
