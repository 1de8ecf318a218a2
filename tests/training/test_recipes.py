"""Settings that follow from the modules of an architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkd import models
from robustkd.core.errors import UsageError
from robustkd.training.config import TrainingConfig
from robustkd.training.recipes import usual_training, with_defaults


@pytest.mark.parametrize(
    ("arch", "lr"),
    [
        ("wrn-10-1", 0.1),
        ("resnet-18", 0.1),
        ("mobilenet-v2-0.25", 0.02),
        ("torchvision/resnet18", 0.02),
        ("torchvision/mobilenet_v3_small", 0.02),
        ("timm/efficientnet_lite0", 0.02),
        ("timm/mobilenetv3_small_050", 0.02),
    ],
)
def test_convolutional_networks_are_trained_by_sgd(arch, lr):
    assert usual_training(arch, epochs=30) == {"lr": lr}


@pytest.mark.parametrize(
    "arch", ["timm/vit_tiny_patch16_224", "timm/convnext_atto", "torchvision/swin_t"]
)
def test_networks_with_layer_norm_are_trained_by_adamw(arch):
    how = TrainingConfig(epochs=20, **usual_training(arch, epochs=20))
    assert (how.optimizer, how.lr, how.weight_decay) == ("adamw", 0.001, 0.05)
    assert (how.warmup_epochs, how.clip_grad) == (2.0, 1.0)


@pytest.mark.parametrize("arch", ["torchvision/vgg11", "torchvision/squeezenet1_1"])
def test_networks_without_normalisation_are_trained_by_adamw_at_a_lower_rate(arch):
    how = TrainingConfig(epochs=20, **usual_training(arch, epochs=20))
    assert (how.optimizer, how.lr, how.clip_grad) == ("adamw", 0.0003, 1.0)


@pytest.mark.parametrize(
    ("arch", "rate"),
    [("wrn-10-1", 0.001), ("timm/resnet10t", 0.001), ("torchvision/vgg11", 0.0003)],
)
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_the_defaults_follow_from_the_optimiser(arch, rate, optimizer):
    how = with_defaults({"optimizer": optimizer, "epochs": 20}, arch)
    assert how == {
        "optimizer": optimizer,
        "epochs": 20,
        "lr": rate,
        "weight_decay": 0.05,
        "warmup_epochs": 2.0,
        "clip_grad": 1.0,
    }
    assert with_defaults({"optimizer": optimizer, "lr": 0.5}, arch)["lr"] == 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "sgdp", "nesterovw", "lars"])
@pytest.mark.parametrize("arch", ["timm/test_vit", "wrn-10-1"])
def test_variants_of_sgd_have_its_rates(arch, optimizer):
    expected = {"optimizer": optimizer, "lr": models.learning_rate(arch)}
    assert with_defaults({"optimizer": optimizer}, arch) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"optimizer": "adamx"}, "optimizer is 'adamx'; expected sgd or an optimiser of timm: "),
    ],
)
@pytest.mark.parametrize("arch", ["timm/test_vit", "wrn-10-1"])
def test_what_the_defaults_depend_on_is_checked_first(arch, given, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        with_defaults(given, arch)


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_the_warm_up_is_shorter_than_the_training(epochs):
    TrainingConfig(epochs=epochs, **usual_training("timm/vit_tiny_patch16_224", epochs=epochs))


def normalised(num_classes: int, in_chans: int) -> nn.Module:
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4)
    return nn.Sequential(nn.Conv2d(in_chans, 4, 3), *pooled, nn.Linear(4, num_classes))


def stubborn(num_classes: int, in_chans: int) -> nn.Module:
    raise RuntimeError("only on real devices")


def reading_values(num_classes: int, in_chans: int) -> nn.Module:
    """Compute a width from the values of a tensor, as timm's RegNets do."""
    width = int(torch.linspace(4, 8, 2)[1].item())
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width)
    return nn.Sequential(nn.Conv2d(in_chans, width, 3), *pooled, nn.Linear(width, num_classes))


def test_own_code_gets_default_settings_too_and_may_fail():
    def own(name: str) -> models.OwnCode:
        return models.OwnCode(f"tests.training.test_recipes:{name}")

    assert usual_training(own("normalised"), epochs=10)["optimizer"] == "adamw"
    assert usual_training(own("reading_values"), epochs=10)["optimizer"] == "adamw"
    assert usual_training(own("stubborn"), epochs=10) == {"lr": 0.02}


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match=r"^unknown architecture 'resnet18'"):
        usual_training("resnet18", epochs=1)
