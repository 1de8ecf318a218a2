"""BTI-DBF: the mask finds the features of the task, and the generator moves the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkd import models
from robustkd.core.errors import UsageError
from robustkd.data import InMemory, Labelled
from robustkd.teacher.defences.bti_dbf import (
    BTIDBF,
    Moves,
    clear_target,
    count_moves,
    decoupling,
    mean_gap,
)
from robustkd.teacher.defences.ending import ending_of
from robustkd.teacher.defences.generator import Generator
from robustkd.teacher.defences.tuning import Tuning, begin
from tests.teacher.defences.networks import DIGITS, Linear, Small


def two_pixels() -> InMemory:
    """Images of 1 x 1 x 2 whose first pixel tells the class; the second is random."""

    def split(n: int, seed: int) -> Labelled:
        labels = torch.arange(n) % 2
        noise = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        levels = torch.stack([labels * 0.8 + 0.1, 0.2 * noise], 1)
        return Labelled((levels * 255).round().to(torch.uint8).view(n, 1, 1, 2), labels)

    return InMemory("two pixels", ("dark", "bright"), split(80, 0), split(20, 1), split(20, 2))


def first_pixel() -> Linear:
    """A network that tells the classes by the first pixel."""
    network = Linear(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([2.0, -2.0]))
    return network


def images_of(source: InMemory):
    return next(source.batches("test", batch_size=20)).images


def test_the_loss_of_a_mask_is_that_of_the_task_with_and_without_features():
    ending = ending_of(first_pixel(), two_pixels())
    features, labels = torch.rand(5, 2), torch.tensor([0, 1, 1, 0, 0])
    everything = decoupling(ending, features, torch.ones(2), labels)
    nothing = decoupling(ending, features, torch.zeros(2), labels)
    torch.testing.assert_close(everything, -nothing)
    half = decoupling(ending, features, torch.full((2,), 0.5), labels)
    torch.testing.assert_close(half, torch.tensor(0.0))


def test_the_mask_keeps_the_features_of_the_task():
    source = two_pixels()
    defence = BTIDBF(mask_steps=80, mask_lr=0.1, tuning=Tuning(batch_size=20))
    work = begin(first_pixel(), source, batch_size=20, seed=0)
    mask = defence._decouple(work, ending_of(work.network, source))
    assert mask[0] > 0.9
    assert 0.4 < mask[1] < 0.6


def test_a_gap_is_a_mean_over_the_features_of_the_mask_however_few_they_are():
    one, other = torch.zeros(4, 100), torch.ones(4, 100)
    few = torch.zeros(100)
    few[0] = 0.3
    torch.testing.assert_close(mean_gap(one, other, few), torch.tensor(1.0))
    torch.testing.assert_close(mean_gap(one, other, 1 - few), torch.tensor(1.0))
    assert mean_gap(one, other, torch.zeros(100)) == 0


@pytest.mark.parametrize("others", [0, 200])
def test_the_generator_moves_the_other_features_even_if_nearly_all_are_benign(others):
    """One feature is not benign; the benign ones see the first pixel and outnumber it."""
    source = two_pixels()
    weight = torch.zeros(2, 2 + others)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2 + others, 2)
            self.head.weight = nn.Parameter(weight)

        def forward(self, images):
            first, second = images.flatten(1).split(1, 1)
            return self.head(torch.cat([second, first.expand(-1, 1 + others)], 1))

    defence = BTIDBF(generator_steps=100, generator_lr=0.01, tuning=Tuning(batch_size=20))
    work = begin(Wide(), source, batch_size=20, seed=0)
    torch.manual_seed(0)
    generator = Generator(1, 0.2)
    mask = torch.ones(2 + others)
    mask[0] = 0.01
    defence._invert(work, ending_of(work.network, source), mask, generator, None)
    images = images_of(source)
    gap = (generator(images).detach() - images).abs().flatten(1).mean(0)
    assert gap[1] > 0.05
    assert gap[1] > 10 * gap[0]


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 7), (1, 28, 28)])
def test_changes_are_bounded_and_images_stay_images(shape):
    torch.manual_seed(0)
    generator = Generator(shape[0], 0.1)
    images = torch.rand(6, *shape)
    before = images.clone()
    nn.init.normal_(generator.change.weight, std=10)
    changed = generator(images).detach()
    assert torch.equal(images, before)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    size = (changed - images).square().mean((1, 2, 3)).sqrt()
    assert float(size.max()) <= 0.1 + 1e-6
    assert float(size.max()) > 0.05


def test_a_generator_that_changes_nothing_has_finite_gradients():
    generator = Generator(1, 0.1)
    nn.init.zeros_(generator.change.weight)
    generator(torch.rand(2, 1, 8, 8)).sum().backward()
    gradients = [p.grad for p in generator.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18", "mobilenet-v2"])
def test_features_are_the_maps_before_pooling_and_no_hook_stays(arch):
    network = models.builder(DIGITS)(arch, 0).eval()
    ending = ending_of(network, DIGITS)
    images = next(DIGITS.batches("test", batch_size=4)).images
    with ending.reader() as read, torch.no_grad():
        features = read(images)
        assert features.ndim == 4
        torch.testing.assert_close(ending.logits(features), network(images))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_without_pooling_features_are_the_inputs_of_the_classifier():
    source = two_pixels()
    network = first_pixel()
    ending = ending_of(network, source)
    images = images_of(source)
    assert ending.maps is None
    with ending.reader() as read:
        assert torch.equal(read(images), images.flatten(1))
    assert not network.head._forward_pre_hooks


def test_maps_of_a_network_with_batchnorm_and_relu_are_those_after_them():
    network = Small().eval()
    assert ending_of(network, DIGITS).maps is network.relu2


def test_the_class_that_images_go_to_is_found():
    source = two_pixels()
    network = first_pixel()
    work = begin(network, source, batch_size=20, seed=0)

    class Bright(nn.Module):
        def forward(self, images):
            return torch.ones_like(images)

    moves = count_moves(network, Bright(), work)
    assert (moves.share, moves.together, clear_target(moves)) == (0.5, 1.0, 1)
    still = count_moves(network, nn.Identity(), work)
    assert (still.share, still.together, clear_target(still)) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("counts", "target"),
    [
        ([0, 0, 0], None),  # no image moves: class 0 is no target
        ([0, 9, 0], None),  # fewer than a tenth of 100
        ([0, 10, 0], 1),
        ([10, 10, 0], None),  # just half of those that move
        ([10, 0, 11], 2),
        ([30, 30, 30], None),
    ],
)
def test_a_target_needs_a_tenth_of_the_images_and_a_majority_of_those_that_move(counts, target):
    assert clear_target(Moves(torch.tensor(counts).float(), seen=100)) == target


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match=r"^radius is 2\.0; expected above 0 and at most 1$"):
        BTIDBF(radius=2.0)
    with pytest.raises(UsageError, match="benign"):
        BTIDBF(benign=-1.0)
