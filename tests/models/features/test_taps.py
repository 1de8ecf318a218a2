"""Taps on networks that one can solve by hand, and on those of every kind."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.models import Spec, build
from robustkd.models.features import taps
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages
from tests.marks import slow


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


def wider(channels: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, 2, 1)


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


def test_in_place_layers_do_not_change_the_features_before_them():
    model = chain(inplace=True)
    with taps.read(model, ["first"]) as features:
        model(X)
        assert torch.equal(features["first"], 2 * X)
    assert model.relu.inplace is True
    residual = Shortcut()
    with taps.read(residual, ["first"]) as features:
        assert torch.equal(residual(X), 3 * X.flatten(1))
        assert torch.equal(features["first"], 2 * X)


def test_everything_is_restored_after_an_exception():
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


def compiled_in_place() -> nn.Module:
    model = chain()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (torch.compile(chain(), backend="eager"), "_orig_mod.first"),
        (torch.compile(chain(), backend="eager"), "first"),
        (compiled_in_place(), "first"),
        (nn.Sequential(torch.compile(chain(), backend="eager")), "0._orig_mod.first"),
    ],
)
def test_features_within_a_compiled_network_are_refused(model, name):
    text = "the network, or a part of it, is compiled by torch.compile, so the features within"
    with pytest.raises(UsageError, match=text), taps.read(model, [name]):
        pass
    with pytest.raises(UsageError, match=text), taps.rewrite(model, {name: torch.abs}):
        pass
    with pytest.raises(UsageError, match=text):
        stages(model, torch.rand(2, 1, 4, 4))
    assert hooks(model) == 0


def test_a_module_that_does_not_run_is_named():
    model = named(first=times(2))
    model.rest = times(3)
    model.forward = model.first.forward
    text = "^module 'rest' does not run in a forward pass, or is compiled by torch.compile; tap"
    with taps.Reader(model, ["rest"]) as reader, pytest.raises(UsageError, match=text):
        reader(X)
    with pytest.raises(UsageError, match=text):
        layouts_of(model, ["rest"], X)


def test_features_outside_of_what_is_compiled_are_read():
    model = named(first=times(2), rest=torch.compile(times(3), backend="eager"))
    with torch.no_grad():
        model(X)
        with taps.read(model, ["first", "rest"]) as features:
            logits = model(X)
    assert logits.item() == features["rest"].mean().item()


@pytest.mark.parametrize(
    ("model", "name", "text"),
    [
        (chain(), "tripel", "no module 'tripel' in Sequential; did you mean 'triple'?"),
        (chain(), "?", "no module '?' in Sequential; see robustkd list --taps"),
        (
            Twice(),
            "first",
            "module 'first' runs more than once per forward pass; expected once: "
            "tap another module",
        ),
        (
            nn.Sequential(OrderedDict(pair=Pair())),
            "pair",
            "module 'pair' returns tuple; expected a tensor: tap another module",
        ),
    ],
)
def test_refusals_say_what_is_wrong(model, name, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"), taps.read(model, [name]):
        model(X)
    assert hooks(model) == 0


class Sometimes(nn.Module):
    """``y = 2 x``, and then ``y += x`` in passes after the first, with a module that is tapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.passes = times(2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        y = self.first(x)
        if self.passes > 1:
            y += x
        return y.flatten(1)


@pytest.mark.parametrize("make", [chain, lambda: chain(inplace=True), Shortcut, Sometimes])
def test_a_reader_gives_what_read_gives_in_every_pass(make):
    model = make()
    with taps.Reader(model, ["first"]) as read:
        for factor in (1, 2, 3):
            logits, features = read(factor * X)
            assert torch.equal(features[0], 2 * factor * X)
        model(-X)  # other passes are not read
        assert torch.equal(features[0], 6 * X)
    last = 3 * 3 * X.flatten(1)
    assert torch.equal(logits, last if make in (Shortcut, Sometimes) else make()(3 * X))
    assert hooks(model) == 0
    assert getattr(model, "relu", nn.ReLU(inplace=True)).inplace is (make is not chain)


def test_a_reader_returns_no_copy_of_what_stays_as_it_is():
    model, outputs = chain(), []
    model.first.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with taps.Reader(model, ["first"]) as read:
        found = [read(X)[1][0] for _ in range(3)]
    assert all(one is output for one, output in zip(found, outputs, strict=True))


def test_a_reader_refuses_what_read_refuses():
    with pytest.raises(UsageError, match="no module 'no' in Sequential"):
        taps.Reader(model := chain(inplace=True), ["first", "no"])
    assert hooks(model) == 0
    assert model.relu.inplace is True
    for made, name, text in (
        (Twice(), "first", "runs more than once"),
        (nn.Sequential(OrderedDict(pair=Pair())), "pair", "returns tuple"),
    ):
        with pytest.raises(UsageError, match=text), taps.Reader(made, [name]) as read:
            read(X)
        assert hooks(made) == 0


def test_the_mode_of_every_module_is_restored():
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
    found = stages(model, torch.rand(3, 3, 16, 16))
    assert found == ("network.groups.1.0.bn1", "network.groups.2.0.bn1", "network.bn")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert hooks(model) == 0


def holds(model: nn.Module, name: str, images: Tensor) -> bool:
    """Whether other images get the logits of these when the module's output is held."""
    module, outputs = taps.module_at(model, name), []
    keep = module.register_forward_hook(lambda _m, _i, output: outputs.append(output.clone()))
    logits = model(images)
    keep.remove()
    hold = module.register_forward_hook(lambda _m, _i, _o: outputs[0].clone())
    same = torch.equal(model(images.flip(0)), logits)
    hold.remove()
    return same and not torch.equal(model(images.flip(0)), logits)


@pytest.mark.parametrize(
    ("arch", "size", "resolutions"),
    [
        ("wrn-16-2", 16, [16, 8, 4]),
        ("pyramidnet-14-12", 16, [16, 8, 4]),
        ("resnet-18", 32, [32, 16, 8, 4]),
        ("torchvision/resnet18", 64, [32, 16, 8, 4, 2]),
        ("torchvision/mobilenet_v2", 64, [32, 16, 8, 4, 2]),
        ("torchvision/squeezenet1_1", 64, [31, 15, 7, 3]),
        slow("torchvision/densenet121", 64, [32, 16, 8, 4, 2]),
        ("timm/mobilenetv3_small_050", 64, [32, 16, 8, 4, 2]),
        ("timm/convnext_atto", 64, [16, 8, 4, 2]),
        slow("timm/pvt_v2_b0", 64, [16, 8, 4, 2]),
        slow("timm/swin_tiny_patch4_window7_224", 64, [16, 8, 4, 2]),
        ("timm/deit_tiny_patch16_224", 64, [4, 4, 4, 4]),
        slow("torchvision/swin_t", 64, [16, 8, 4, 2]),
    ],
)
def test_stages_are_bottlenecks_of_falling_resolution(arch, size, resolutions):
    model = build(Spec(arch, 7, (3, size, size)), seed=0).eval()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.bias.uniform_(-0.1, 0.5)  # fresh statistics leave deep networks all but constant
        images = torch.rand(3, 3, size, size)
        found = stages(model, images)
        assert all(holds(model, name, images) for name in found), found
        shapes = [layout.size for layout in layouts_of(model, found, images)]
    assert shapes == [(side, side) for side in resolutions]
    assert hooks(model) == 0


def test_a_transformer_is_divided_into_quarters():
    model = build(Spec("timm/deit_tiny_patch16_224", 7, (3, 32, 32)), seed=0)
    found = stages(model, torch.rand(2, 3, 32, 32))
    assert found == tuple(
        f"network.{part}" for part in ("blocks.2", "blocks.5", "blocks.8", "norm")
    )


def test_stages_do_not_depend_on_the_images():
    model = build(Spec("wrn-10-1", 3, (1, 8, 8)), seed=0)
    assert stages(model, torch.zeros(1, 1, 8, 8)) == stages(model, torch.rand(5, 1, 8, 8))


def test_normalised_images_are_no_stage():
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalise, self.halve = times(2), nn.Conv2d(1, 1, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.halve(self.normalise(x)).flatten(1)

    assert stages(Normalised(), torch.rand(2, 1, 4, 4)) == ("halve",)


def test_stages_are_found_inside_no_grad_and_of_frozen_networks():
    model = build(Spec("wrn-10-1", 3, (1, 8, 8)), seed=0).requires_grad_(False)
    with torch.no_grad():
        assert len(stages(model, torch.rand(2, 1, 8, 8))) == 3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_branch_is_no_stage():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = wider(), wider(2), wider(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (self.left(x) + self.right(x)).flatten(1)

    assert stages(Branches(), torch.rand(2, 1, 4, 4)) == ("stem",)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = wider()

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).detach().flatten(1)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Detached()], ids=["flat", "detached"]
)
def test_probing_refuses_unsupported_networks(model):
    text = f"no stage found in {type(model).__name__}; give the module paths of its stages as taps"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        stages(model, torch.rand(2, 1, 4, 4))
    assert hooks(model) == 0
