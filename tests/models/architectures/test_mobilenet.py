"""MobileNetV2: the paper's size and strides for large images, fewer strides for small ones."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.models import Classifier, Spec, build, parameters
from robustkd.models.features import taps
from robustkd.models.features.stages import stages


def mobilenet(width: str = "", channels: int = 3, size: int = 32, classes: int = 10) -> Classifier:
    name = f"mobilenet-v2{width and '-'}{width}"
    return build(Spec(name, classes, (channels, size, size)), seed=0)


@pytest.mark.slow
def test_weights_of_torchvision_fit():
    ours = mobilenet(size=96, classes=7).network
    theirs = torchvision.models.mobilenet_v2(num_classes=7)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(("width", "millions"), [("", 3.4), ("0.75", 2.61), ("1.4", 6.06)])
def test_sizes_are_those_of_the_paper(width, millions):
    with torch.device("meta"):
        model = mobilenet(width, size=224, classes=1000)
    assert parameters(model) == pytest.approx(1e6 * millions, rel=0.035)


@pytest.mark.parametrize(
    ("size", "last"), [(16, 2), (28, 4), (32, 4), (47, 6), (48, 3), (64, 4), (95, 6), (96, 3)]
)
def test_the_last_features_are_small_but_not_gone(size, last):
    with torch.device("meta"):
        network = mobilenet("0.25", size=size).network
        features = network.features(torch.rand(1, 3, size, size))
    assert tuple(features.shape[1:]) == (1280, last, last)


@pytest.mark.parametrize("channels", [1, 3])
def test_stages_of_small_images(channels):
    model = mobilenet("0.25", channels, size=28)
    images = torch.rand(3, channels, 28, 28)
    found = stages(model, images)
    with taps.read(model.eval(), found) as features:
        model(images)
    assert [features[name].shape[-1] for name in found] == [28, 14, 7, 4]


def test_training_on_small_images_has_no_randomness_besides_the_seed():
    """The same batch gives the same logits twice in training: no dropout beside the seed."""
    model, images = mobilenet("0.25"), torch.rand(4, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    assert [m.p for m in mobilenet(size=96).modules() if isinstance(m, nn.Dropout)] == [0.2]


@pytest.mark.parametrize("width", ["0", "0.000", "5"])
def test_other_widths_are_refused(width):
    text = f"MobileNetV2 width is {float(width)}; expected above 0 and at most 4"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        mobilenet(width)
