"""Masks of a user's own class: they are used, and what cannot be saved is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.data import InMemory, Labelled
from robustkd.models import Classifier, Spec, build
from robustkd.models.features import taps
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask, save_detoxified


class Scaled(FeatureMask):
    """Shrinks the features and has no use for the pattern."""

    def forward(self, features: Tensor) -> Tensor:
        return features * (1 - self.mask)[None] + 0 * self.pattern[None]


def source() -> InMemory:
    images = torch.randint(256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    held = Labelled(images.to(torch.uint8), torch.arange(12) % 3)
    return InMemory("toy", ("a", "b", "c"), held, held, held)


def network() -> Classifier:
    return build(Spec("wrn-10-1", classes=3, image_shape=(1, 8, 8)), seed=0)


def test_masks_of_another_class_change_the_features_in_their_own_form():
    made = detoxify(network(), source(), mask=Scaled, cap=0.3, steps=2, raises=0).teacher
    assert {type(mask) for mask in made.masks} == {Scaled}
    assert [mask.cap for mask in made.feature_masks] == [0.3] * len(made.locations)
    images = torch.rand(2, 1, 8, 8)
    with taps.read(made.teacher, made.locations[:1]) as plain, torch.no_grad():
        made.teacher(images)
    with taps.read(made, made.taps[:1]) as cleaned, torch.no_grad():
        made(images)
    share = 1 - made.feature_masks[0].mask
    assert torch.allclose(cleaned["masks.0"], plain[made.locations[0]] * share)


@pytest.mark.parametrize("mask", [Scaled, nn.Identity])
def test_masks_that_a_file_cannot_describe_are_not_saved(mask, tmp_path):
    made = Scaled(torch.zeros(16, 8, 8), cap=1.0) if mask is Scaled else mask()
    teacher = DetoxifiedTeacher(network(), {"network.groups.0": made})
    text = f"masks of type {mask.__name__} cannot be saved; expected FeatureMask"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        save_detoxified(teacher, tmp_path / "m")
    assert not list(tmp_path.iterdir())
