"""Forms of the cleaning that are measured beside those of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.method_settings import DetoxSettings
from robustkd.core.types import Batch
from robustkd.data import InMemory, Labelled
from robustkd.models.features import taps
from robustkd.student.pair import Pair
from robustkd.student.terms import TERMS, Outputs
from robustkd.teacher.defences.masks import DetoxifiedTeacher

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ON = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
"""Channels that are bright in images of each class."""


@pytest.fixture(scope="module")
def forms():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import cleaning_forms

        yield cleaning_forms
    del sys.modules["cleaning_forms"]
    del TERMS["variance"]


class Shortcut(nn.Module):
    """Decides between six classes by three channels; the fourth, noise, leads to the last one.

    The features of the stage ``early`` do not have the noise.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.early, self.stage = nn.Identity(), nn.Identity()
        self.taps = ("early", "stage")
        self.head = nn.Linear(4, 6)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:, :3] = 18 * (ON - 0.5)
            self.head.weight[5, 3] = strength
            self.head.bias.copy_(-9 * (ON - 0.5).sum(1))
            self.head.bias[5] -= strength / 2

    def forward(self, images: Tensor) -> Tensor:
        noise = 997 * images.sum(1, keepdim=True) % 1
        pixels = self.early(images)
        return self.head(self.stage(torch.cat([pixels, noise], 1)).mean(dim=(2, 3)))


def colours(n: int, seed: int) -> Labelled:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 6
    pixels = 0.7 * ON[labels][:, :, None, None] + 0.3 * torch.rand(n, 3, 4, 4, generator=random)
    return Labelled((pixels * 255).to(torch.uint8), labels)


def source() -> InMemory:
    parts = (colours(n, seed) for seed, n in enumerate((120, 60, 60)))
    return InMemory("toy", tuple("abcdef"), *parts)


def batch(n: int = 12) -> Batch:
    held = colours(n, seed=9)
    return Batch(held.images.float() / 255, held.labels, torch.arange(n))


def test_an_addition_changes_the_variance_after_relu_and_not_before(forms):
    mask = forms.AdditiveMask(torch.full((4, 4, 4), -1.0), cap=0.9)
    nn.init.constant_(mask.mask, 0.5)
    teacher = DetoxifiedTeacher(Shortcut(0.0), {"stage": mask})
    images = batch()
    (plain,) = forms.original(teacher, images)
    cleaned = mask(plain)
    assert torch.allclose(cleaned, plain - 0.5)
    assert torch.allclose(cleaned.var(0), plain.var(0), atol=1e-6)
    found = forms.OfActivations()(teacher, [cleaned], images)
    expected = cleaned.clamp_min(0).var(0).sum() / plain.clamp_min(0).var(0).sum()
    assert torch.allclose(found, expected)
    assert 0 < found < 0.8


def test_the_variances_match_if_the_features_do(forms):
    shape = ((2, 4, 4),)
    loss = forms.MatchedVariance(Pair(shape, shape, margins=list, temperature=1.0))
    loss.connectors = nn.ModuleList([nn.Identity()])
    features = torch.rand(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    teacher = Outputs(torch.zeros(8, 3), (features,))
    assert torch.equal(loss(teacher, teacher), torch.zeros(8))
    # A shift changes no variance; a factor of 2 makes each four times as large.
    shifted = Outputs(torch.zeros(8, 3), (features + 5,))
    assert torch.allclose(loss(shifted, teacher), torch.zeros(8), atol=1e-8)
    doubled = Outputs(torch.zeros(8, 3), (2 * features,))
    assert torch.allclose(loss(doubled, teacher), torch.full((8,), 9.0))


def test_a_projection_sets_the_coordinates_of_its_directions_to_their_means(forms):
    directions = torch.linalg.qr(torch.rand(4, 2, generator=torch.Generator().manual_seed(0))).Q.T
    means = torch.tensor([0.3, -1.0])
    features = torch.randn(5, 4, 3, 3)
    cleaned = forms.Projection(directions, means)(features)
    along = torch.einsum("kc,nchw->nkhw", directions, cleaned)
    assert torch.allclose(along, means[None, :, None, None].expand_as(along), atol=1e-5)
    left = cleaned - features
    across = left - torch.einsum(
        "kc,nkhw->nchw", directions, torch.einsum("kc,nchw->nkhw", directions, left)
    )
    assert across.abs().max() < 1e-5


def test_the_class_with_a_shortcut_stands_out_and_loses_it(forms, monkeypatch):
    monkeypatch.setattr(forms.Inversion, "STEPS", 40)
    cleaned, record = forms.Inversion()(Shortcut(40.0), source(), "no", 0)
    assert record["outliers"] == [[], [5]]
    directions = cleaned.masks[1].directions
    assert directions.abs().argmax() == 3
    assert record["teacher ACC"] > 0.9


def test_every_stage_of_an_inverted_teacher_is_left_for_the_student(forms, monkeypatch):
    monkeypatch.setattr(forms.Inversion, "STEPS", 40)
    network, images = Shortcut(40.0), batch().images
    cleaned, _ = forms.Inversion()(network, source(), "no", 0)
    assert cleaned.locations == network.taps
    with taps.read(cleaned, cleaned.taps) as features:
        cleaned(images)
    assert torch.equal(features["masks.0"], images)
    noise = 997 * images.sum(1) % 1
    assert features["masks.1"][:, 3].std() < 0.2 * noise.std()


def test_a_network_without_a_shortcut_stays_as_it_is(forms, monkeypatch):
    monkeypatch.setattr(forms.Inversion, "STEPS", 40)
    network = Shortcut(0.0)
    cleaned, record = forms.Inversion()(network, source(), "no", 0)
    assert record["outliers"] == [[], []]
    assert cleaned is network


def test_the_accuracy_of_a_cleaned_teacher_is_of_validation_in_every_form(forms, monkeypatch):
    monkeypatch.setattr(forms.Inversion, "STEPS", 40)
    parts = (colours(120, seed=0), colours(60, seed=1), colours(60, seed=2))
    wrong = parts[2]._replace(labels=(parts[2].labels + 1) % 6)
    data = InMemory("toy", tuple("abcdef"), *parts[:2], wrong)
    _, record = forms.Inversion()(Shortcut(0.0), data, "no", 0)
    _, other = forms.masks(DetoxSettings(steps=1, raises=0))(Shortcut(0.0), data, "no", 0)
    assert min(record["teacher ACC"], other["teacher ACC"]) > 0.9
