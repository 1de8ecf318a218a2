"""Members of many classes and large images are held in half precision."""

from __future__ import annotations

import pytest
import torch

from robustkd.student.families import Ball, Patch, perturbations

CLASSES, SHAPE = 3, (3, 6, 5)
IMAGES = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(0))
TOWARD = torch.tensor([0, 2, 2, 0, 2, 0])
KINDS = {Ball: 0.2, Patch: 0.1}


def made(kind: type, most: int, monkeypatch: pytest.MonkeyPatch) -> Ball | Patch:
    monkeypatch.setattr(perturbations, "_IN_FULL", most)
    return kind(CLASSES, SHAPE, KINDS[kind], torch.Generator().manual_seed(1))


def steps(family: Ball | Patch, count: int) -> torch.Tensor:
    for _ in range(count):
        changed = family(IMAGES, TOWARD)
        (changed * torch.linspace(-1, 1, changed.numel()).view_as(changed)).sum().backward()
        with torch.no_grad():
            family.advance(1.0)
    return family(IMAGES, TOWARD).detach()


def numbers() -> int:
    return CLASSES * IMAGES[0].numel()


@pytest.mark.parametrize("kind", KINDS)
def test_only_members_above_the_limit_take_half_of_the_memory(kind, monkeypatch):
    full, half = (made(kind, most, monkeypatch) for most in (numbers(), numbers() - 1))
    for name, buffer in full.named_buffers():
        assert buffer.dtype == torch.float32
        assert 2 * half.get_buffer(name).nbytes == buffer.nbytes


def test_a_thousand_classes_are_half_at_224_pixels_and_full_at_64():
    assert 1000 * 3 * 64 * 64 <= perturbations._IN_FULL < 1000 * 3 * 224 * 224


@pytest.mark.parametrize("kind", KINDS)
def test_half_members_change_images_as_full_ones_do(kind, monkeypatch):
    full, half = (steps(made(kind, most, monkeypatch), 5) for most in (numbers(), 0))
    assert half.dtype == torch.float32
    assert half.min() >= 0
    assert half.max() <= 1
    torch.testing.assert_close(half, full, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_half_members_stay_half_and_within_their_bounds(kind, monkeypatch):
    family = made(kind, 0, monkeypatch)
    before = {name: buffer.dtype for name, buffer in family.named_buffers()}
    steps(family, 3)
    family.bound(0.5)
    assert {name: buffer.dtype for name, buffer in family.named_buffers()} == before
    assert all(buffer.isfinite().all() for buffer in family.buffers())
    if isinstance(family, Ball):
        assert family.delta.abs().max() <= 0.5 * KINDS[Ball] + 1e-4
    else:
        assert family.mask.float().mean((1, 2, 3)).max() <= 0.5 * KINDS[Patch] + 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_state_in_full_precision_is_read(kind, monkeypatch):
    full, half = (made(kind, most, monkeypatch) for most in (numbers(), 0))
    steps(full, 2)
    half.load_state_dict(full.state_dict())
    for name, buffer in full.named_buffers():
        assert torch.equal(half.get_buffer(name), buffer.to(half.get_buffer(name).dtype))


def test_one_pixel_with_all_of_the_gradient_does_not_overflow_the_average(monkeypatch):
    monkeypatch.setattr(perturbations, "_IN_FULL", 0)
    family = Ball(2, (1, 300, 300), 0.2, torch.Generator().manual_seed(1))
    family(torch.full((1, 1, 300, 300), 0.5), torch.tensor([1]))[0, 0, 7, 7].backward()
    with torch.no_grad():
        family.advance(1.0)
    assert family.pull[1, 0, 7, 7] > torch.finfo(torch.float16).max
    assert family.pull.isfinite().all()
