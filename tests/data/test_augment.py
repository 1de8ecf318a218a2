"""Augmentations compared with naive definitions: only allowed results occur, and all of them do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustkd.core.errors import UsageError
from robustkd.data import CropFlip, ZoomFlip
from robustkd.data.augment import AUGMENTATIONS, RandAugmented, named, weaker


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def allowed(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """Every crop of the reflected ``image``, by torch's own padding and a loop."""
    _, height, width = image.shape
    padded = F.pad(image[None], (pad,) * 4, mode="reflect")[0]
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 4)])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_each_allowed_crop_occurs_about_equally_often_and_no_other(pad, shape, flip):
    image = torch.rand(shape, generator=seeded())
    every = torch.stack(allowed(image, pad, flip))
    # In a small image two crops can be alike, which is then drawn twice as often.
    variants, ways = every.unique(dim=0, return_counts=True)
    each = 60
    n = each * len(every)
    results = CropFlip(pad=pad, flip=flip)(image.expand(n, *shape), seeded(1))
    which = (results[:, None] == variants[None]).flatten(2).all(2)
    assert which.any(1).all()
    counts = which.sum(0)
    expected = each * ways
    # Six standard deviations of a count.
    assert ((counts - expected).abs() <= 6 * expected.sqrt()).all()


def test_every_sample_is_drawn_independently():
    images = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    results = CropFlip(pad=2, flip=True)(images, seeded())
    assert len(torch.unique(results.flatten(1), dim=0)) > 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmentation", [CropFlip(), CropFlip(pad=2), CropFlip(pad=1, flip=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_float32_channels_last_and_input_untouched(channels, augmentation, dtype):
    images = torch.rand(6, channels, 8, 9, dtype=dtype)
    before = images.clone()
    results = augmentation(images, seeded())
    assert results.dtype == torch.float32
    assert results.shape == images.shape
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_writing_to_a_cropped_image_does_not_change_the_input():
    images = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    CropFlip(pad=1)(images, seeded()).zero_()
    assert torch.equal(images, before)


def test_an_augmentation_without_effect_draws_no_random_number():
    images = torch.rand(4, 3, 8, 8)
    generator = seeded()
    state = generator.get_state()
    assert torch.equal(CropFlip(pad=0, flip=False)(images, generator), images)
    assert torch.equal(generator.get_state(), state)


def test_same_seed_same_result():
    images = torch.rand(16, 1, 8, 8)
    augment = CropFlip(pad=2, flip=True)
    assert torch.equal(augment(images, seeded(3)), augment(images, seeded(3)))
    assert not torch.equal(augment(images, seeded(3)), augment(images, seeded(4)))


def test_no_images_are_no_error():
    assert CropFlip(pad=2, flip=True)(torch.rand(0, 3, 8, 8), seeded()).shape == (0, 3, 8, 8)


def test_pads_out_of_range_are_refused():
    with pytest.raises(
        UsageError, match=r"^pad is -1; expected at least 0; use pad=0 for no crops$"
    ):
        CropFlip(pad=-1)
    message = r"^pad is 4; expected less than the image size 4x9; lower it$"
    with pytest.raises(UsageError, match=message):
        CropFlip(pad=4)(torch.rand(2, 1, 4, 9), seeded())


def test_repr_shows_every_parameter():
    assert repr(CropFlip(pad=2, flip=True)) == "CropFlip(pad=2, flip=True)"


def ramp(size: int) -> torch.Tensor:
    """A picture whose channels are the position across and down, from 0 to 1."""
    along = (torch.arange(size) + 0.5) / size
    return torch.stack([along.expand(size, size), along[:, None].expand(size, size)])[None]


def test_zooms_are_windows_of_every_allowed_size_and_place():
    n, size = 400, 16
    zoomed = ZoomFlip(least=0.25)(ramp(size).expand(n, -1, -1, -1), seeded())
    assert zoomed.is_contiguous(memory_format=torch.channels_last)
    # Away from the border, where the outermost pixel is repeated, a window of a ramp is a ramp.
    inner = zoomed[:, :, 2:-2, 2:-2]
    across = inner[:, 0, 0].diff(dim=1) * size
    down = inner[:, 1, :, 0].diff(dim=1) * size
    assert torch.allclose(across, across[:, :1].expand_as(across), atol=1e-3)
    assert torch.allclose(across.abs(), down, atol=1e-3)
    area = down[:, 0].square()
    assert area.min() >= 0.25 - 1e-3
    assert area.max() <= 1 + 1e-3
    # Uniform: the mean of 400 draws lies within five standard errors.
    assert abs(area.mean() - 0.625) < 5 * 0.75 / 12**0.5 / n**0.5
    mirrored = (across[:, 0] < 0).float().mean()
    assert abs(mirrored - 0.5) < 5 * 0.5 / n**0.5
    centre = zoomed[:, 1].mean(dim=(1, 2))
    side = area.sqrt()
    place = (centre - side / 2) / (1 - side).clamp(min=1e-6)
    known = side < 0.9
    assert place[known].min() > -0.05
    assert place[known].max() < 1.05
    assert abs(place[known].mean() - 0.5) < 5 / 12**0.5 / known.sum() ** 0.5


def test_a_zoom_by_one_is_the_image():
    images = torch.rand(6, 3, 8, 9, generator=seeded())
    before = images.clone()
    assert torch.allclose(ZoomFlip(least=1, flip=False)(images, seeded()), images, atol=1e-5)
    flipped = ZoomFlip(least=1)(images, seeded())
    either = torch.stack([images, images.flip(3)])
    nearest = (either - flipped).abs().amax(dim=(2, 3, 4))
    assert (nearest.min(0).values < 1e-5).all()
    assert set(nearest.argmin(0).tolist()) == {0, 1}
    assert torch.equal(images, before)


@pytest.mark.parametrize("least", [0.0, -1, 1.5])
def test_shares_out_of_range_are_refused(least):
    message = rf"^least is {least}; expected above 0 and at most 1$"
    with pytest.raises(UsageError, match=message):
        ZoomFlip(least=least)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("light", [CropFlip(pad=2, flip=True), ZoomFlip()])
def test_randaugment_depends_only_on_its_generator(channels, light):
    images = torch.rand(12, channels, 16, 16, generator=seeded())
    before, state = images.clone(), torch.get_rng_state()
    augmented = RandAugmented(light)
    first = augmented(images, seeded(1))
    torch.manual_seed(99)
    again = augmented(images, seeded(1))
    assert torch.equal(first, again)
    assert torch.equal(images, before)
    assert not torch.equal(first, augmented(images, seeded(2)))
    torch.set_rng_state(state)
    augmented(images, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.dtype, first.shape) == (torch.float32, images.shape)
    assert 0 <= first.min() <= first.max() <= 1
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_randaugment_treats_each_image_on_its_own():
    images = torch.rand(1, 3, 16, 16).expand(40, -1, -1, -1)
    results = RandAugmented(CropFlip())(images, seeded())
    assert len(torch.unique(results.flatten(1), dim=0)) > 20


def test_randaugment_refuses_what_torchvision_cannot_do():
    for options, message in (
        ({"operations": 0}, "operations is 0; expected at least 1"),
        ({"magnitude": 31}, "magnitude is 31; expected 0 to 30"),
    ):
        with pytest.raises(UsageError, match=f"^{message}$"):
            RandAugmented(CropFlip(), **options)


def test_augmentations_by_name():
    usual = CropFlip(3, flip=True)
    found = [named(name, usual) for name in AUGMENTATIONS]
    assert found == [CropFlip(), usual, RandAugmented(usual)]
    with pytest.raises(
        UsageError, match=r"^augment is 'heavy'; expected none, light, randaugment$"
    ):
        named("heavy", usual)


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (CropFlip(1, flip=False), [CropFlip()]),
        (CropFlip(0, flip=True), [CropFlip()]),
        (CropFlip(), []),
        (ZoomFlip(0.5), [ZoomFlip(0.75), CropFlip(0, flip=True), CropFlip()]),
        (RandAugmented(CropFlip(4)), []),
    ],
)
def test_weaker_forms_lose_shifts_and_zooms_before_flips(augmentation, expected):
    assert weaker(augmentation) == expected


@pytest.mark.parametrize("channels", [2, 4])
def test_randaugment_needs_one_or_three_channels(channels):
    augment = RandAugmented(CropFlip())
    with pytest.raises(UsageError, match=f"images have {channels} channels; expected 1 or 3"):
        augment(torch.rand(3, channels, 8, 8), torch.Generator().manual_seed(0))
