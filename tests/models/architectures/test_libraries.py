"""Networks of torchvision and timm: built without weights, described, refused by their text."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import asdict

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.backends import cuda, mha
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustkd.core.errors import InputError, UsageError
from robustkd.models import Spec, build, load, macs, parameters, preprocessing, save
from robustkd.models.complexity import operations
from robustkd.models.model_file import write_safetensors
from robustkd.models.registry import layout
from robustkd.teacher.read import load_teacher
from tests.marks import slow_but

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def made(arch: str, channels: int = 3, size: int = 64, classes: int = 7) -> nn.Module:
    return build(Spec(arch, classes, (channels, size, size)), seed=0)


@pytest.mark.parametrize(
    "arch",
    [
        "torchvision/resnet18",
        "torchvision/googlenet",
        "torchvision/vit_b_16",
        "timm/resnet10t",
        "timm/resnet18.a1_in1k",
        "timm/deit_tiny_patch16_224",
        "timm/efficientnet_b0",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_they_take_any_classes_channels_and_sizes(arch, channels):
    with torch.device("meta"):  # as a file's claim is checked
        claimed = made(arch, channels)
    logits = claimed.train()(torch.rand(2, channels, 64, 64, device="meta"))
    assert logits.shape == (2, 7)


def test_the_inceptions_normalise_as_torchvision_does_with_its_weights():
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    theirs = torchvision.models.googlenet(aux_logits=False, init_weights=True, transform_input=True)
    expected = theirs._transform_input((images - mean) / std)
    torch.testing.assert_close((images - 0.5) / 0.5, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    slow_but(
        ("regnet_y_128gf", "regnet_x_400mf", "resnet18", "squeezenet1_0"),
        torchvision.models.list_models(module=torchvision.models),
    ),
)
def test_every_classifier_of_torchvision_is_laid_out_without_memory(name):
    model = layout(Spec(f"torchvision/{name}", 10, (3, 224, 224)))
    assert all(weight.is_meta for weight in model.parameters())


def test_a_network_that_needs_values_while_it_is_built_is_saved_and_read(tmp_path):
    arch = "torchvision/regnet_y_400mf"
    model = made(arch, size=32)
    save(model, tmp_path / "ours.safetensors")
    assert parameters(load(tmp_path / "ours.safetensors")) == parameters(layout(model.spec))
    torch.save(model.network.state_dict(), tmp_path / "theirs.pt")
    read = load_teacher(tmp_path / "theirs.pt", arch=arch, classes=7, image_shape=(3, 32, 32))
    for name, tensor in read.network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name]), name


def test_networks_of_timm_that_need_values_are_laid_out(monkeypatch):
    def reads_values(*_: object, **__: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, int(torch.tensor(10.0).item())))

    monkeypatch.setattr(timm, "create_model", reads_values)
    assert parameters(layout(Spec("timm/resnet18", 10, (3, 8, 8)))) == 1930


def test_a_claim_of_large_images_needs_the_values_of_a_network(tmp_path):
    file, spec = tmp_path / "m.safetensors", Spec("timm/maxvit_tiny_tf_224", 2, (3, 4096, 4096))
    write_safetensors(file, {"a": torch.zeros(300)}, {"spec": asdict(spec)})
    with pytest.raises(InputError, match="4096 x 4096 pixels, but has only 1200 bytes of values"):
        load(file)


def test_a_network_for_images_larger_than_the_published_is_read(tmp_path):
    saved = made("timm/test_vit", size=320)
    save(saved, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").spec == saved.spec


def test_weights_of_torchvision_fit_resnet_18():
    theirs = torchvision.models.resnet18(num_classes=7)
    ours = made("resnet-18", size=96).network
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    made("timm/mobilenetv3_small_050.lamb_in1k")
    made("torchvision/mobilenet_v3_small")
    assert preprocessing("torchvision/mobilenet_v3_small") is not None


SQUARE = "centred-square"
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("timm/deit_tiny_patch16_224", ((3, 224, 224), *IMAGENET, 0.9, SQUARE, "bicubic")),
        ("timm/resnet18", ((3, 224, 224), *IMAGENET, 0.95, SQUARE, "bicubic")),
        ("timm/vit_base_patch16_siglip_224", ((3, 224, 224), HALF, HALF, 0.9, SQUARE, "bicubic")),
        ("timm/tf_efficientnet_b1.in1k", ((3, 240, 240), *IMAGENET, 0.882, SQUARE, "bicubic")),
        ("torchvision/resnet18", ((3, 224, 224), *IMAGENET, 224 / 256, SQUARE, "bilinear")),
        ("torchvision/inception_v3", ((3, 299, 299), HALF, HALF, 299 / 342, SQUARE, "bilinear")),
        ("torchvision/googlenet", ((3, 224, 224), HALF, HALF, 224 / 256, SQUARE, "bilinear")),
        ("wrn-16-2", None),
    ],
)
def test_published_preprocessing(arch, expected):
    assert preprocessing(arch) == expected


@pytest.mark.parametrize(
    ("arch", "size", "published"),
    [
        ("resnet-18", 224, (11.69e6, 1.81e9)),
        ("resnet-50", 224, (25.56e6, 4.09e9)),
        ("mobilenet-v2", 224, (3.50e6, 0.30e9)),
        ("mobilenet-v1", 224, (4.23e6, 0.57e9)),
        ("timm/deit_tiny_patch16_224", 224, (5.72e6, 1.26e9)),
    ],
)
def test_sizes_are_the_published_ones(arch, size, published):
    with torch.device("meta"):
        model = made(arch, size=size, classes=1000)
        counted = macs(model, (3, size, size))
    assert (parameters(model), counted) == pytest.approx(published, rel=0.01)
    assert model.training


def test_operations_by_hand():
    """3 x 3 convolution of 2 to 5 channels on 4 x 4, then a matrix of 80 x 7; nothing else."""
    network = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7)
    )
    assert macs(network, (2, 4, 4)) == 9 * 2 * 5 * 16 + 80 * 7


def test_attention_is_counted_the_same_on_a_cpu():
    model = made("timm/vit_tiny_patch16_224", size=224, classes=1000)
    counted = macs(model, (3, 224, 224))
    assert counted == macs(model.to("meta"), (3, 224, 224))
    assert counted == pytest.approx(1.2537e9, rel=1e-4)


class OnTokens(nn.Module):
    """A function of 12 tokens of width 16, with the layer that it calls."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(self.layer, images.flatten(2).mT)


def chosen_kernel(layer: nn.Module, x: Tensor) -> Tensor:
    heads = layer(x)[:, None]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(heads, heads, heads)


ATTENTION = 2 * 12 * 12 * 16
"""Products of queries and keys, and of weights and values, of 12 tokens in all heads."""
HEADS = nn.MultiheadAttention(16, 2, batch_first=True)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (OnTokens(HEADS, lambda m, x: m(x, x, x)[0]), 4 * 12 * 16 * 16 + ATTENTION),
        (
            OnTokens(HEADS, lambda m, x: m(x, x, x, need_weights=False)[0]),
            4 * 12 * 16 * 16 + ATTENTION,
        ),
        (
            OnTokens(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), lambda m, x: m(x)),
            4 * 12 * 16 * 16 + ATTENTION + 2 * 12 * 16 * 32,
        ),
        (OnTokens(nn.Linear(16, 16), chosen_kernel), 12 * 16 * 16 + ATTENTION),
    ],
    ids=["with weights", "without weights", "encoder", "chosen kernel"],
)
def test_attention_by_hand(network, expected):
    assert macs(network, (16, 3, 4)) == expected


@pytest.mark.parametrize("fails", [False, True])
def test_counting_changes_no_setting_of_torch(fails):
    settings = (mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.math_sdp_enabled())
    network = OnTokens(nn.Linear(15 if fails else 16, 1), lambda m, x: m(x))
    assert operations(network, (16, 3, 4)) == (None if fails else 12 * 16)
    after = (mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.math_sdp_enabled())
    assert after == settings


def test_a_file_of_timm_comes_back(tmp_path):
    model, images = made("timm/resnet10t").eval(), torch.rand(2, 3, 64, 64)
    save(model, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(images), model(images))


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("torchvision/resnet19", "torchvision has no classifier 'resnet19'; did you mean"),
        ("torchvision/fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'; did you"),
        ("timm/resnet_18", "timm has no classifier 'resnet_18'; did you mean"),
        ("timm/resnet18.mine", "timm has no weights 'resnet18.mine'; remove the dot and"),
        ("timm/hf-hub:someone/something", "unknown architecture 'timm/hf-hub:someone/something'"),
        ("timm/local-dir:x", "unknown architecture 'timm/local-dir:x'; expected"),
        (
            "torchvision/vit_b_16",
            "torchvision/vit_b_16 does not accept images of shape (3, 50, 50): ",
        ),
        ("timm/../resnet18", "unknown architecture 'timm/../resnet18'; expected"),
    ],
)
def test_refusals_say_what_is_wrong(arch, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}"):
        made(arch, size=50)
