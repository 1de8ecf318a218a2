"""Taps on networks that one can solve by hand, and on torchvision's."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robustkd import taps
from robustkd.errors import UsageError
from robustkd.models import Spec, build


def times(factor: float) -> nn.Conv2d:
    """A convolution of one channel that multiplies by ``factor``."""
    made = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(made.weight, factor)
    return made


def named(**parts: nn.Module) -> nn.Sequential:
    made = nn.Sequential()
    for name, part in {**parts, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}.items():
        made.add_module(name, part)
    return made


def chain(*, inplace: bool = False) -> nn.Sequential:
    """The mean over the pixels of 3 max(2 x, 0)."""
    return named(first=times(2), relu=nn.ReLU(inplace), triple=times(3))


class Shortcut(nn.Module):
    """``y = 2 x; y += x``, as residual networks of torchvision do it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = times(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += x
        return y.flatten(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = times(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.first(x)).flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


X = torch.tensor([[-1.0, 0.5], [2.0, -3.0]]).reshape(1, 1, 2, 2)


def test_read_gives_what_is_computed_by_hand():
    model = chain()
    with taps.read(model, ["first", "triple"]) as features:
        assert features == {}
        logits = model(X)
        assert list(features) == ["first", "triple"]
        assert torch.equal(features["first"], 2 * X)
        assert torch.equal(features["triple"], torch.tensor([[[[0.0, 3.0], [12.0, 0.0]]]]))
        assert logits.item() == 15 / 4
        model(-X)
        assert torch.equal(features["first"], -2 * X)
    assert hooks(model) == 0


def test_gradients_flow_through_what_is_read():
    model, x = chain(), X.clone().requires_grad_()
    with taps.read(model, ["first"]) as features:
        model(x)
        features["first"].sum().backward()
    assert torch.equal(x.grad, torch.full_like(X, 2.0))


def test_what_follows_in_place_leaves_the_features_alone():
    model = chain(inplace=True)
    with taps.read(model, ["first"]) as features:
        model(X)
        assert torch.equal(features["first"], 2 * X)
    assert model.relu.inplace is True
    residual = Shortcut()
    with taps.read(residual, ["first"]) as features:
        assert torch.equal(residual(X), 3 * X.flatten(1))
        assert torch.equal(features["first"], 2 * X)


def test_everything_is_put_back_after_an_exception():
    model = chain(inplace=True)
    with pytest.raises(KeyError), taps.read(model, ["first"]):
        raise KeyError
    with pytest.raises(KeyError), taps.rewrite(model, {"first": torch.abs}):
        raise KeyError
    with pytest.raises(UsageError), taps.read(model, ["first", "no"]):
        pass
    with pytest.raises(UsageError), taps.rewrite(model, {"first": torch.abs, "no": torch.abs}):
        pass
    with pytest.raises(RuntimeError), taps.read(model, ["first"]):
        model(torch.zeros(1, 2, 2, 2))
    assert hooks(model) == 0
    assert model.relu.inplace is True


def test_rewrite_changes_what_comes_after():
    model = chain()
    before = model(X)
    changes = {"first": lambda f: f + 1, "triple": lambda f: f * 10}
    with taps.rewrite(model, changes), taps.read(model, ["triple"]) as features:
        # 3 max(2 x + 1, 0) = 0, 6, 15, 0 and ten times that.
        assert model(X).item() == 210 / 4
        assert features["triple"].flatten().tolist() == [0.0, 60.0, 150.0, 0.0]
    assert torch.equal(model(X), before)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("model", "name", "text"),
    [
        (chain(), "tripel", "no module 'tripel' in Sequential; did you mean 'triple'?"),
        (chain(), "?", "no module '?' in Sequential"),
        (Twice(), "first", "module 'first' runs twice in a pass; tap another module"),
        (
            nn.Sequential(OrderedDict(pair=Pair())),
            "pair",
            "module 'pair' gives no single tensor; tap another module",
        ),
    ],
)
def test_refusals_say_what_is_wrong(model, name, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"), taps.read(model, [name]):
        model(X)
    assert hooks(model) == 0


def test_modes_are_given_back_one_by_one():
    model = chain()
    model.relu.eval()
    for training in (False, True):
        seen = set()
        with pytest.raises(TypeError), taps.frozen_modes(model, training=training):
            model(seen.update(module.training for module in model.modules()))
        assert seen == {training}
        assert [m.training for m in model.children()] == [True, False, True, True, True]


def test_module_at_walks_the_path():
    model = build(Spec("wrn-10-1", 3, (1, 8, 8)), seed=0)
    assert taps.module_at(model, "network.groups.1.0.bn1") is model.network.groups[1][0].bn1
    assert taps.module_at(model, "") is model


@pytest.mark.parametrize("arch", ["wrn-10-1", "wrn-16-2"])
def test_stages_of_a_wrn_are_its_groups_before_relu(arch):
    model = build(Spec(arch, 3, (3, 16, 16)), seed=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = taps.stages(model, torch.rand(3, 3, 16, 16))
    assert found == ("network.groups.1.0.bn1", "network.groups.2.0.bn1", "network.bn")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("arch", "resolutions"),
    [
        ("resnet18", [32, 16, 8, 4, 2]),
        ("mobilenet_v2", [32, 16, 8, 4, 2]),
        ("squeezenet1_1", [31, 15, 7, 3]),
    ],
)
def test_stages_of_torchvision_are_bottlenecks(arch, resolutions):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(arch, weights=None, num_classes=7).eval()
        images = torch.rand(3, 3, 64, 64)
    found = taps.stages(model, images)
    modules = dict(model.named_modules())
    sizes = []
    with torch.no_grad():
        logits = model(images)
        assert not torch.equal(model(images.flip(0)), logits)
        for name in found:
            outputs: list[Tensor] = []
            keep = modules[name].register_forward_hook(
                lambda _m, _i, output, outputs=outputs: outputs.append(output.clone())
            )
            model(images)
            keep.remove()
            (held,) = outputs
            sizes.append(held.shape[-1])
            hold = modules[name].register_forward_hook(lambda _m, _i, _o, held=held: held.clone())
            assert torch.equal(model(images.flip(0)), logits), name
            hold.remove()
    assert sizes == resolutions


def test_a_branch_is_no_stage():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = times(2), times(3), times(5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (self.left(x) + self.right(x)).flatten(1)

    assert taps.stages(Branches(), torch.rand(2, 1, 4, 4)) == ("stem",)


@pytest.mark.parametrize(
    ("model", "images", "text"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
            torch.arange(32.0).reshape(2, 1, 4, 4),
            "no stage found in Sequential; name the taps yourself",
        ),
        (chain(), torch.rand(1, 1, 4, 4), "probing needs at least 2 images; got 1"),
        (
            chain(),
            torch.ones(2, 1, 4, 4),
            "probing needs different images; the logits of all given are the same",
        ),
    ],
)
def test_probing_refuses_what_it_cannot_judge(model, images, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        taps.stages(model, images)
    assert hooks(model) == 0
