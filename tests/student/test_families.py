"""The contract of every family of transformations that hardening uses."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.student.families import (
    FAMILIES,
    Ball,
    Bounded,
    Chain,
    Family,
    FamilyRow,
    Patch,
    make_family,
    members_of,
)
from robustkd.student.families.generator import generate
from robustkd.student.hardening import UniversalPerturbations

CLASSES, SHAPE = 3, (3, 12, 10)
IMAGES = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(0))
TOWARD = torch.tensor([0, 2, 2, 0, 2, 0])


def made(name: str) -> nn.Module:
    return make_family(name, CLASSES, SHAPE, torch.Generator().manual_seed(1))


def parts(family: nn.Module) -> list[nn.Module]:
    if not isinstance(family, Chain):
        return [family]
    return [part for member in family.families for part in parts(member)]


NAMES = [*FAMILIES, "warp+generator", "filter+smooth+flow"]


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_in_range_and_the_input_is_unchanged(name):
    family, before = made(name), IMAGES.clone()
    changed = family(IMAGES, TOWARD)
    assert isinstance(family, Family)
    assert changed.shape == IMAGES.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, IMAGES)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_family_can_be_stored_as_an_object_and_sent_to_a_process(name):
    family = made(name)
    again = pickle.loads(pickle.dumps(family))  # noqa: S301 (ours)
    assert torch.equal(again(IMAGES, TOWARD), family(IMAGES, TOWARD))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_follows_the_gradient_and_leaves_unused_members_unchanged(name):
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


@pytest.mark.parametrize("name", NAMES)
def test_a_family_may_receive_no_image(name):
    """At the end of a fade, there may be fewer copies than families."""
    family = made(name)
    before = {key: value.clone() for key, value in family.state_dict().items()}
    none = torch.zeros(0, *SHAPE, requires_grad=True)
    changed = family(none, TOWARD[:0])
    assert changed.shape == none.shape
    changed.sum().backward()
    with torch.no_grad():
        family.advance(1.0)
    assert all(torch.equal(value, before[key]) for key, value in family.state_dict().items())


@pytest.mark.parametrize("make", [*NAMES, "additions", "patterns"])
def test_a_batch_in_parts_gives_the_step_of_the_batch(make):
    """Large images pass the network in parts, each with a backward pass of its own."""

    def stepped(parts: int) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        kinds = {"additions": lambda: Ball(CLASSES, SHAPE, 0.1, random)}
        kinds["patterns"] = lambda: Patch(CLASSES, SHAPE, 0.1, random)
        family = kinds[make]() if make in kinds else made(make)
        weight = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(2))
        for rows in torch.arange(6).tensor_split(parts):
            (family(IMAGES[rows], TOWARD[rows]) * weight[rows]).sum().backward()
        with torch.no_grad():
            family.advance(1.0)
        return family.state_dict()

    for name, value in stepped(1).items():
        torch.testing.assert_close(stepped(3)[name], value)


@pytest.mark.parametrize("name", NAMES)
def test_calls_without_gradients_are_not_recorded(name):
    family = made(name)
    with torch.no_grad():
        family(IMAGES, TOWARD)
    assert [part.gradients() for part in parts(family)] == [None] * len(parts(family))
    family(IMAGES, TOWARD)
    assert all(part.gradients() is not None for part in parts(family))


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_members_never_leave_their_bound(name, scale):
    family = made(name)
    for _ in range(30):
        family(IMAGES, TOWARD).sum().backward()
        with torch.no_grad():
            family.advance(scale)
    family.bound(scale)
    for part in parts(family):
        assert (part.members.abs() <= scale * part.limit + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
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
    assert torch.equal(generate(IMAGES, torch.zeros(6, size), 0.35, 12), IMAGES)
    most = generate(IMAGES, torch.ones(6, size), 0.35, 12) - IMAGES
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


def test_a_composition_applies_its_parts_in_order_and_names_an_unknown_part():
    both = made("warp+generator")
    warp, last = both.families
    assert torch.equal(both(IMAGES, TOWARD), last(warp(IMAGES, TOWARD), TOWARD))
    with pytest.raises(UsageError, match="unknown family 'generatr'; did you mean 'generator'"):
        made("warp+generatr")


# Compositions.


class Recorded(torch.nn.Module):
    """A family that notes which images it changes, and adds to their pixels."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, images, _toward):
        return images + self.amount


def composed(seed: int = 0) -> UniversalPerturbations:
    made = UniversalPerturbations(
        3, SHAPE, families=("flow", "affine", "generator"), composed=True, seed=seed
    )
    for index, amount in enumerate((10000, 1000, 1, 10, 100)):  # ball, patch, flow, affine, ...
        made.families[index] = Recorded(amount)
    return made


def test_every_copy_passes_one_family_of_each_drawn_stage_and_at_least_one_stage():
    images = torch.zeros(4000, *SHAPE)
    labels = torch.zeros(4000, dtype=torch.int64)
    seen, _ = composed().perturb(images, labels)
    sums = seen[4000:, 0, 0, 0].round().long()
    moved, valued, added = sums % 100, (sums // 100) % 10, sums // 1000
    assert set(moved.tolist()) == {0, 1, 10}
    assert set(valued.tolist()) == {0, 1}
    assert set(added.tolist()) == {0, 1, 10}
    assert (sums > 0).all()
    # One of three stages is drawn for the 1/8 of copies that would pass none.
    for stage in (moved > 0, valued > 0, added > 0):
        assert stage.float().mean().item() == pytest.approx(1 / 2 + 1 / 24, abs=0.03)


def test_pixels_are_moved_before_something_is_added_to_them():
    order = []

    def noting(name):
        def forward(images, toward):
            order.append(name)
            return images

        return forward

    made = composed()
    for index, name in enumerate(("ball", "patch", "flow", "affine", "generator")):
        made.families[index].forward = noting(name)
    made.perturb(torch.zeros(200, *SHAPE), torch.zeros(200, dtype=torch.int64))
    assert [{"flow": 0, "affine": 0, "generator": 1}.get(name, 2) for name in order] == [
        *(0, 0, 1, 2, 2)
    ]


def test_a_composition_learns_every_family_that_was_used():
    made = UniversalPerturbations(
        3, SHAPE, families=("flow", "affine", "generator"), composed=True, seed=0
    )
    before = {name: value.clone() for name, value in made.state_dict().items()}
    seen, toward = made.perturb(torch.rand(64, *SHAPE), torch.randint(0, 3, (64,)))
    logits = seen[64:].flatten(1)[:, :3]
    logits.gather(1, toward[:, None]).sum().backward()
    made.advance()
    after = made.state_dict()
    for name in ("0.delta", "1.pattern", "2.members", "3.members", "4.members"):
        assert not torch.equal(after[f"families.{name}"], before[f"families.{name}"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, p: None, "family 'own' returns NoneType; expected a tensor"),  # noqa: ARG005
        (lambda x, p: (x + p)[..., :3].clamp(0, 1), "returns (2, 3, 12, 3) and torch.float32"),
        (lambda x, p: (x + p).clamp(0, 1).double(), "returns (2, 3, 12, 10) and torch.float64"),
        (lambda x, p: x + p + 1, "family 'own' returns pixels from "),
        (lambda x, p: x + p * torch.nan, "family 'own' returns pixels that are not finite"),
        (lambda x, p: x.add_(p.detach()).clamp_(0, 1), "family 'own' changes the images"),
        (lambda x, p: (x + p.detach()).clamp(0, 1), "no gradient passes through family 'own'"),
    ],
)
@pytest.mark.parametrize("name", ["own", "warp+own"])
def test_a_family_of_a_user_that_breaks_its_contract_is_named_before_any_training(
    change, text, name, monkeypatch
):
    class Own(Bounded):
        def forward(self, images, toward):
            return change(images, *self.used(toward, "members"))

    row = FamilyRow("mine", lambda n, _image, random: Own(n, (1, 1, 1), 0.3, change, random))
    monkeypatch.setitem(FAMILIES, "own", row)
    with pytest.raises(UsageError, match=re.escape(text)):
        made(name)


def test_a_row_that_makes_no_family_is_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "own", FamilyRow("mine", lambda *_: nn.Identity()))
    with pytest.raises(UsageError, match="family 'own' is of type Identity; expected a module"):
        made("own")


def test_the_trial_of_a_family_leaves_no_trace(monkeypatch):
    class Own(Bounded):
        def __init__(self, *given):
            super().__init__(*given)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images, toward):
            (members,) = self.used(toward, "members")
            noisy = images + 0.01 * torch.rand_like(images) + 0 * self.norm(images)
            return (noisy + members).clamp(0, 1)

    def own(classes, _image, random):
        return Own(classes, (1, 1, 1), 0.3, lambda x, p: x + p, random)

    monkeypatch.setitem(FAMILIES, "own", FamilyRow("mine", own))
    before = torch.get_rng_state()
    family = made("own")
    assert torch.equal(torch.get_rng_state(), before)
    assert family.norm.num_batches_tracked == 0


def test_a_family_of_a_user_that_keeps_its_contract_is_not_changed_by_its_trial(monkeypatch):
    def row(name: str) -> FamilyRow:
        return replace(FAMILIES["flow"], summary=name)

    monkeypatch.setitem(FAMILIES, "own", row("own"))
    own, same = made("own"), made("flow")
    assert all(map(torch.equal, own.state_dict().values(), same.state_dict().values()))
    own.advance(1.0)  # nothing is left of the trial
    assert torch.equal(own(IMAGES, TOWARD), same(IMAGES, TOWARD))
