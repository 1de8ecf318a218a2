"""Folding of BatchNorm layers: by hand, for networks of every kind, and what must not be folded."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch
from torch import Tensor, nn

from robustkd.models import Spec, build
from robustkd.models.features import taps
from robustkd.models.features.folding import folded
from robustkd.models.features.stages import stages
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask

IMAGES = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution and its BatchNorm, whose use is up to a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = with_statistics(nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).flatten(2).mean(2))

    def maps(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class AddedLater(Net):
    def maps(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class ReadAsNumbers(Net):
    def maps(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * (0 if sum(y.flatten().tolist()) > 1e9 else 1)


class Compared(Net):
    def maps(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * (1 if torch.equal(y, y[:0]) else 2)


class ChangedInPlace(Net):
    def maps(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        return self.norm(y)


class ConvTwice(Net):
    def maps(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(-x).relu())


class NormByName(Net):
    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) + self.norm.bias[:, None, None]


class AsksForShape(Net):
    def maps(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        assert y.shape[2:] == (y.size(2), y.size(3))
        assert y.is_floating_point()
        assert not y.is_sparse
        return self.norm(y)


class TwoNames(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.norm


class NotCopied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda _module, _inputs, output: 2 * output)


class Doubled(Net):
    """A BatchNorm with a method of its own, which only a comparison of the outputs notices."""

    def __init__(self) -> None:
        super().__init__()
        plain = self.norm.forward
        self.norm.forward = lambda x: 2 * plain(x)


class OwnConvolution(Net):
    def __init__(self) -> None:
        super().__init__()

        class Doubling(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        self.conv = Doubling(3, 4, 3)


class OfTheBatch(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


def with_statistics(norm: nn.BatchNorm2d, seed: int = 0) -> nn.BatchNorm2d:
    random = torch.Generator().manual_seed(seed)
    for values, least in ((norm.running_mean, -1), (norm.running_var, 0.5)):
        values.uniform_(least, 2, generator=random)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 2, generator=random)
        nn.init.uniform_(norm.bias, -1, 1, generator=random)
    return norm


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * one.abs().max())


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_weight_and_bias_are_those_computed_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    values = (model[0].weight, model[0].bias, model[1].running_mean, model[1].running_var)
    for tensor, value in zip((*values, *model[1].parameters()), (3, 1, 5, 4, 6, 7), strict=True):
        nn.init.constant_(tensor, value)
    found = folded(model, (), torch.rand(2, 1, 2, 2))
    # (3 x + 1 - 5) * 6 / 2 + 7
    assert (found[0].weight.item(), found[0].bias.item()) == (9, -5)
    assert isinstance(found[1], nn.Identity)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Net, AsksForShape])
def test_the_outputs_are_equal_and_the_network_stays(kind, bias, affine):
    model = kind().eval()
    model.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=bias)
    model.norm = with_statistics(nn.BatchNorm2d(4, affine=affine)).train()
    before = copy.deepcopy(model.state_dict())
    found = folded(model, (), IMAGES)
    assert norms(found) == 0
    assert close(model.eval()(IMAGES), found(IMAGES))
    assert found.head.weight is model.head.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in found.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_modes_of_the_network_are_restored():
    model = Net()
    model.norm.eval()
    folded(model, (), IMAGES)
    assert [module.training for module in model.modules()] == [True, True, False, True]


@pytest.mark.parametrize(
    "kind",
    [
        AddedLater, ReadAsNumbers, Compared, ChangedInPlace, ConvTwice, NormByName, TwoNames,
        NotCopied,
        Hooked, Doubled, OwnConvolution, OfTheBatch,
    ],
)  # fmt: skip
def test_networks_that_would_change_or_cannot_be_copied_are_not_folded(kind):
    assert folded(kind().eval(), (), IMAGES) is None


def test_a_network_that_is_not_finite_is_not_folded():
    model = Net().eval()
    nn.init.constant_(model.norm.running_var, -1.0)
    assert folded(model, (), IMAGES) is None


@pytest.mark.parametrize("tap", ["conv", "norm"])
def test_taps_stay_exact(tap):
    assert folded(Net().eval(), [tap], IMAGES) is None


class TappedOutput(Net):
    """A tap whose output is that of a convolution inside, and a pair that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.last = with_statistics(nn.BatchNorm2d(4), seed=1)

    def maps(self, x: Tensor) -> Tensor:
        return self.last(self.stage(super().maps(x)))


def test_a_convolution_whose_output_is_that_of_a_tap_stays_and_others_are_folded():
    model = TappedOutput().eval()
    found = folded(model, ["stage"], IMAGES)
    assert isinstance(found.norm, nn.Identity)
    assert norms(found) == 1
    with torch.no_grad(), taps.read(found, ["stage"]) as features:
        assert close(model(IMAGES), found(IMAGES))
        assert close(model.stage(Net.maps(model, IMAGES)), features["stage"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in found.modules())


@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_a_batch_norm_of_timm_keeps_its_activation(dropped):
    norm_act = pytest.importorskip("timm.layers.norm_act")
    model = Net()
    drop = functools.partial(nn.Dropout, dropped)
    model.norm = norm_act.BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=drop)
    with_statistics(model.eval().norm)
    # The path of the activation is still there to be read.
    found = folded(model, ["norm.act"], IMAGES)
    assert norms(found) == 0
    assert isinstance(model.norm, norm_act.BatchNormAct2d)
    with torch.no_grad(), taps.read(found, ["norm.act"]) as features:
        assert close(model(IMAGES), found(IMAGES))
        assert close(model.maps(IMAGES), features["norm.act"])


@pytest.mark.parametrize(
    ("arch", "left"),
    # What is left follows an addition or is a tap.
    [("wrn-10-1", 4), ("wrn-10-2", 3), ("resnet-18", 0), ("mobilenet-v2-0.5", 4)],
)
def test_architectures_give_the_same_logits_and_features(arch, left):
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    model = build(Spec(arch, 10, (3, 32, 32)), seed=0).eval()
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            with_statistics(module, seed)
    names = stages(model, images)
    found = folded(model, names, images[:2])
    assert norms(found) == left
    with torch.no_grad(), taps.Reader(model, names) as one, taps.Reader(found, names) as other:
        (logits, features), (short, shorter) = one(images), other(images)
    for expected, given in zip((logits, *features), (short, *shorter), strict=True):
        assert close(expected, given)


def test_a_detoxified_teacher_is_folded_inside():
    model = Net().eval()
    inside = nn.Sequential(model.conv, model.norm, nn.Flatten(), nn.Linear(4 * 36, 2))
    random = torch.Generator().manual_seed(0)
    mask = FeatureMask(torch.randn((4, 6, 6), generator=random), cap=1.0)
    for location, left in (("1", 0), ("0", None)):
        masked = DetoxifiedTeacher(inside, {location: mask})
        found = folded(masked, masked.taps, IMAGES)
        if left is None:  # the mask is between the convolution and the BatchNorm
            assert found is None
        else:
            assert norms(found) == left
            assert close(masked(IMAGES), found(IMAGES))
