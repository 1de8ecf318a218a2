"""BTI-DBF: the mask finds the features of the task, and the generator moves the others."""

from __future__ import annotations

import torch
from torch import nn

from robustkd.data import InMemory, Labelled
from robustkd.teacher.defences.bti_dbf import BTIDBF, Generator, decoupling, features_of, led_to
from robustkd.teacher.defences.head import head_of
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


def test_the_loss_of_a_mask_is_that_of_the_task_with_and_without_features():
    head = nn.Linear(3, 4)
    features, labels = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    everything = decoupling(head, features, torch.ones(3), labels)
    nothing = decoupling(head, features, torch.zeros(3), labels)
    torch.testing.assert_close(everything, -nothing)
    torch.testing.assert_close(
        decoupling(head, features, torch.full((3,), 0.5), labels), torch.tensor(0.0)
    )


def test_the_mask_keeps_the_features_of_the_task():
    source = two_pixels()
    network = first_pixel()
    defence = BTIDBF(mask_epochs=20, mask_lr=0.1, tuning=Tuning(batch_size=20))
    work = begin(network, source, batch_size=20, seed=0)
    mask = defence._decouple(work, work.network, head_of(work.network, source))
    assert mask[0] > 0.9
    assert 0.4 < mask[1] < 0.6


def test_the_generator_moves_the_other_features_and_images_stay_images():
    source = two_pixels()
    network = first_pixel()
    defence = BTIDBF(generator_epochs=30, generator_lr=0.01, tuning=Tuning(batch_size=20))
    work = begin(network, source, batch_size=20, seed=0)
    head = head_of(work.network, source)
    torch.manual_seed(0)
    generator = Generator(1, 0.3)
    mask = torch.tensor([1.0, 0.0])
    defence._invert(work, work.network, head, mask, generator, None)
    images = next(source.batches("test", batch_size=20)).images
    changed = generator(images).detach()
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    gap = (changed - images).abs()
    assert float(gap.max()) <= 0.3 + 1e-6
    first, second = gap.flatten(1).mean(0)
    assert second > 5 * first


def test_features_are_the_inputs_of_the_classifier_and_no_hook_stays():
    network = Small().eval()
    head = head_of(network, DIGITS)
    images = next(DIGITS.batches("test", batch_size=4)).images
    with features_of(network, head) as read, torch.no_grad():
        features = read(images)
        torch.testing.assert_close(head(features), network(images))
    assert not head._forward_pre_hooks


def test_the_class_that_images_go_to_is_found():
    source = two_pixels()
    network = first_pixel()
    work = begin(network, source, batch_size=20, seed=0)

    class Bright(nn.Module):
        def forward(self, images):
            return torch.ones_like(images)

    assert led_to(network, Bright(), work) == (1, 0.5)
