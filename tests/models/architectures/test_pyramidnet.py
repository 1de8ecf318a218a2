"""PyramidNet: the paper's sizes, widths and forward pass, shorthands, refusals."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.models import Classifier, Spec, build, parameters
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages


def pyramid(arch: str, size: int = 8) -> Classifier:
    return build(Spec(f"pyramidnet-{arch}", classes=10, image_shape=(3, size, size)), seed=0)


@pytest.mark.parametrize(
    ("arch", "published"), [("110-48", 1.7e6), ("110-84", 3.8e6), ("200-240-bottleneck", 26.6e6)]
)
def test_sizes_are_those_of_the_paper(arch, published):
    with torch.device("meta"):
        assert parameters(pyramid(arch)) == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(("short", "full"), [("110", "110-84"), ("200", "200-240-bottleneck")])
def test_the_shorthands_of_the_paper(short, full):
    with torch.device("meta"):
        one, other = pyramid(short).state_dict(), pyramid(full).state_dict()
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def test_every_block_adds_as_many_channels():
    network = pyramid("20-18").network
    blocks = [*network.layer1, *network.layer2, *network.layer3]
    assert [block.conv1.out_channels for block in blocks] == [16 + 2 * k for k in range(1, 10)]
    wide = pyramid("20-18-bottleneck").network
    blocks = [*wide.layer1, *wide.layer2, *wide.layer3]
    assert [block.conv3.out_channels for block in blocks] == [4 * (16 + 3 * k) for k in range(1, 7)]


def naive_pyramid(state: dict[str, Tensor], x: Tensor, blocks: int, convolutions: int) -> Tensor:
    """Figure 6 (d) of the paper: BN, conv, (BN, ReLU, conv)*, BN; the shortcut gains zeros."""

    def normed(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = normed("bn1", F.conv2d(x, state["conv1.weight"], padding=1))
    for group in (1, 2, 3):
        for block in range(blocks):
            name, first = f"layer{group}.{block}", group > 1 and not block
            inner = x
            for index in range(1, convolutions + 1):
                inner = normed(f"{name}.bn{index}", inner)
                inner = inner if index == 1 else inner.relu()
                weight = state[f"{name}.conv{index}.weight"]
                strided = first and index == (1 if convolutions == 2 else 2)
                inner = F.conv2d(
                    inner, weight, stride=2 if strided else 1, padding=weight.shape[-1] // 2
                )
            inner = normed(f"{name}.bn{convolutions + 1}", inner)
            shortcut = F.avg_pool2d(x, 2) if first else x
            x = inner
            x[:, : shortcut.shape[1]] += shortcut
    pooled = normed("bn_final", x).relu().flatten(2).mean(2)
    return pooled @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    ("arch", "blocks", "convolutions"), [("14-12", 2, 2), ("20-12-bottleneck", 2, 3)]
)
def test_logits_are_those_of_the_paper_layer_by_layer(arch, blocks, convolutions):
    network = pyramid(arch).network.double()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if ".bn" in name or name.startswith("bn"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    images = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    expected = naive_pyramid(network.state_dict(), images, blocks, convolutions)
    torch.testing.assert_close(network.eval()(images), expected)


def test_odd_image_sizes_fit():
    model = pyramid("20-12-bottleneck", 9).eval()
    assert model(torch.rand(2, 3, 9, 7)).shape == (2, 10)


def test_stages_are_its_groups_before_relu():
    model, images = pyramid("20-12-bottleneck", 16), torch.rand(2, 3, 16, 16)
    found = stages(model, images)
    assert found == ("network.layer1.1", "network.layer2.1", "network.bn_final")
    assert [layout.shape for layout in layouts_of(model, found, images)] == [
        (80, 16, 16),
        (96, 8, 8),
        (112, 4, 4),
    ]


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        (
            "21-12",
            "PyramidNet depth is 21; expected 6 n + 2 with n >= 1 for basic blocks: 8, 14, 20, ...",
        ),
        (
            "50-12-bottleneck",
            "PyramidNet depth is 50; expected 9 n + 2 with n >= 1 for bottleneck blocks: "
            "11, 20, 29, ...",
        ),
        ("20-0", "PyramidNet alpha is 0; expected at least 1"),
        (
            "20",
            "'pyramidnet-20' has no alpha; expected pyramidnet-DEPTH-ALPHA[-bottleneck], or "
            "one of the short names pyramidnet-110 and pyramidnet-200",
        ),
    ],
)
def test_others_are_refused(arch, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        pyramid(arch)
