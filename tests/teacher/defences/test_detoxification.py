"""Detoxification: masks by hand, an unchanged teacher, noise removed and the class kept."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import UNLABELLED
from robustkd.data import InMemory, Labelled
from robustkd.models import Classifier, Spec, build, load, save
from robustkd.models.features import taps
from robustkd.models.model_file import read_safetensors, write_safetensors
from robustkd.teacher.defences import detoxification
from robustkd.teacher.defences.detoxification import Detoxified, detoxify
from robustkd.teacher.defences.masks import (
    DetoxifiedTeacher,
    FeatureMask,
    load_detoxified,
    save_detoxified,
)
from robustkd.training.metrics import Proportion
from tests.modes import MODES
from tests.unlabelled import Unlabelled


def times(factor: float) -> nn.Conv2d:
    made = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(made.weight, factor)
    return made


class Two(nn.Module):
    """The mean pixel of 3 max(2 x, 0), with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = times(2), nn.ReLU(inplace=True), times(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.relu(self.first(images))).flatten(1)


def filled(shape: tuple[int, int, int], *, mask: float, pattern: float) -> FeatureMask:
    made = FeatureMask(torch.full(shape, pattern), cap=1.0)
    nn.init.constant_(made.mask, mask)
    return made


def split(n: int, seed: int, informative: int) -> Labelled:
    """Three channels of noise; the level of one of them tells the class."""
    generator = torch.Generator().manual_seed(seed)
    levels, labels = torch.rand(n, 3, 1, 1, generator=generator), torch.arange(n) % 2
    levels[:, informative, 0, 0] = 0.25 + 0.5 * labels
    pixels = levels + 0.1 * torch.rand(n, 3, 2, 2, generator=generator)
    return Labelled((pixels * 230).to(torch.uint8), labels)


def source(informative: int = 0) -> InMemory:
    parts = (split(n, seed, informative) for seed, n in enumerate((96, 40, 20)))
    return InMemory("toy", ("dark", "bright"), *parts)


class Level(nn.Module):
    """Sees all channels, decides by one, and carries a BatchNorm whose statistics may not move."""

    def __init__(self, informative: int = 0) -> None:
        super().__init__()
        self.stage = nn.BatchNorm2d(3, affine=False)
        self.stage.running_mean.fill_(0.5)
        self.head = nn.Linear(3, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight[:, informative] = torch.tensor([-6.0, 6.0])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage(images).mean(dim=(2, 3)))


def cleaned(informative: int = 0, **changes: Any) -> Detoxified:
    settings = {"stages": ("stage",), "variance_weight": 0.3, "raises": 0, "batch_size": 48}
    teacher = Level(informative)
    return detoxify(teacher, source(informative), **{**settings, **changes})


def wrn() -> Classifier:
    """Trained enough that BatchNorm statistics are not those of a fresh network."""
    made = build(Spec("wrn-10-1", classes=3, image_shape=(1, 8, 8)), seed=0)
    made(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return made


def detoxified_wrn() -> DetoxifiedTeacher:
    generator = torch.Generator().manual_seed(1)
    masks = {
        "network.groups.2.0.bn1": FeatureMask(torch.rand(32, 4, 4, generator=generator), cap=0.4),
        "network.bn": FeatureMask(torch.rand(64, 2, 2, generator=generator), cap=1.0),
    }
    for mask in masks.values():
        mask.mask.data = mask.cap * torch.rand(mask.mask.shape, generator=generator)
    return DetoxifiedTeacher(wrn(), masks)


# The mask


def test_a_mask_is_between_the_features_and_the_pattern():
    features = torch.randn(5, 3, 2, 4)
    pattern = torch.randn(3, 2, 4)
    mask = FeatureMask(pattern, cap=1.0)
    with torch.no_grad():
        mask.mask.zero_()
        assert torch.equal(mask(features), features)
        mask.mask.fill_(1.0)
        assert torch.equal(mask(features), pattern.expand_as(features))
        mask.mask.copy_(torch.rand(3, 2, 4))
        m = mask.mask
        torch.testing.assert_close(mask(features), (1 - m) * features + m * pattern)
        torch.testing.assert_close(mask(features).var(0), (1 - m) ** 2 * features.var(0))


def test_a_mask_works_position_by_position():
    mask = FeatureMask(torch.tensor([[[10.0, 20.0]]]), cap=1.0)
    mask.mask.data = torch.tensor([[[0.5, 1.0]]])
    features = torch.tensor([[[[2.0, 3.0]]], [[[4.0, 5.0]]]])
    assert mask(features).flatten(1).tolist() == [[6.0, 20.0], [7.0, 20.0]]


def test_a_mask_keeps_its_own_copy_of_the_pattern():
    pattern = torch.ones(2, 2, 2)
    mask = FeatureMask(pattern, cap=0.01)
    pattern.zero_()
    assert mask.pattern.min() == 1
    # A fresh mask is small, and within its cap.
    assert torch.equal(mask.mask, torch.full((2, 2, 2), 0.01))


def test_projection_puts_the_mask_between_zero_and_its_cap():
    mask = FeatureMask(torch.zeros(1, 1, 5), cap=0.2)
    mask.mask.data = torch.tensor([[[-1.0, 0.0, 0.1, 0.2, 7.0]]])
    mask.project()
    assert torch.equal(mask.mask, torch.tensor([[[0.0, 0.0, 0.1, 0.2, 0.2]]]))


@pytest.mark.parametrize("cap", [0.0, -1.0, 1.5, float("nan")])
def test_a_cap_out_of_range_is_refused(cap):
    text = f"cap is {cap}; expected above 0 and at most 1"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        FeatureMask(torch.zeros(1, 1, 1), cap=cap)


# The detoxified teacher


def test_stages_are_computed_from_cleaned_stages():
    shape = (1, 1, 2)
    masks = {
        "first": filled(shape, mask=0.5, pattern=1.0),
        "second": filled(shape, mask=0.25, pattern=4.0),
    }
    teacher = DetoxifiedTeacher(Two(), masks)
    assert teacher.taps == ("masks.0", "masks.1")
    images = torch.tensor([[[[1.0, -3.0]]]])
    with torch.no_grad(), taps.read(teacher, teacher.taps) as features:
        logits = teacher(images)
    # 2 x = 2, -6; cleaned 1.5, -2.5; relu and triple 4.5, 0; cleaned 4.375, 1.
    assert features["masks.0"].flatten().tolist() == [1.5, -2.5]
    assert features["masks.1"].flatten().tolist() == [4.375, 1.0]
    assert logits.tolist() == [[4.375, 1.0]]


def test_masks_of_zero_change_nothing():
    masks = {"network.groups.1.0.bn1": filled((16, 8, 8), mask=0.0, pattern=3.0)}
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(DetoxifiedTeacher(wrn(), masks)(images), wrn().eval()(images))


def test_the_original_is_neither_shared_nor_changed():
    teacher = wrn()
    made = DetoxifiedTeacher(teacher, {"network.bn": filled((64, 2, 2), mask=0.5, pattern=0.0)})
    before = copy.deepcopy(teacher.state_dict())
    made(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not any(p.requires_grad for p in made.teacher.parameters())
    assert all(p.grad is not None for p in made.masks.parameters())
    shared = {p.data_ptr() for p in teacher.parameters()}
    assert not shared & {p.data_ptr() for p in made.parameters()}


def test_it_stays_in_eval_mode_and_its_statistics_never_move():
    made = detoxified_wrn()
    before = {name: value.clone() for name, value in made.named_buffers()}
    assert made.train() is made
    nn.Sequential(made).train()
    made(torch.rand(4, 1, 8, 8))
    assert not any(module.training for module in made.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.named_buffers())
    assert not any(module._forward_hooks for module in made.modules())


def test_copies_and_states_give_the_same_logits():
    made, images = detoxified_wrn(), torch.rand(4, 1, 8, 8)
    logits = made(images)
    assert torch.equal(copy.deepcopy(made)(images), logits)
    fresh = {
        "network.groups.2.0.bn1": filled((32, 4, 4), mask=0.0, pattern=0.0),
        "network.bn": filled((64, 2, 2), mask=0.0, pattern=0.0),
    }
    other = DetoxifiedTeacher(build(made.teacher.spec, seed=3), fresh)
    assert not torch.equal(other(images), logits)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(images), logits)


# The learning


@pytest.mark.parametrize("informative", [0, 2])
@pytest.mark.parametrize("ratio", ["position", "stage"])
def test_noise_is_removed_and_the_class_is_kept(informative, ratio):
    result = cleaned(informative, ratio=ratio)
    mask = result.teacher.masks[0].mask
    for channel in range(3):
        if channel == informative:
            assert mask[channel].max() < 0.5
        else:
            assert mask[channel].min() > 0.9
    assert result.record.accuracy_before == 1.0
    assert result.record.accuracy_after == 1.0
    with taps.read(result.teacher, result.teacher.taps) as features:
        result.teacher(source(informative).train.images / 255)
    variance = features["masks.0"].var(0).mean(dim=(1, 2))
    assert variance.argmax() == informative
    assert variance.sum() < 1.02 * variance[informative]


def test_another_objective_takes_the_place_of_the_variance_ratio():
    seen = []

    def middle(teacher, features, batch):
        (stage,) = features
        seen.append((type(teacher), stage.shape == batch.images.shape, batch.labels.shape))
        return stage[:, 1].var(dim=0).mean()

    result = cleaned(objective=middle, variance_weight=3.0)
    mask = result.teacher.masks[0].mask
    assert mask[1].min() > 0.9
    # The third channel is noise as well, but this objective does not ask for its variance.
    assert mask[2].max() < 0.2
    assert set(seen) == {(DetoxifiedTeacher, True, (48,))}
    # The record has the ratio of the variances in any case.
    assert 1 / 3 < result.record.variance_ratio[0] < 1


def test_the_record_has_the_measured_values():
    result = cleaned()
    record = result.record
    (point,) = record.curve
    mask = result.teacher.masks[0].mask
    assert record.stages == result.teacher.locations == ("stage",)
    assert record.mean_mask == (pytest.approx(mask.mean().item()),)
    assert (point.variance_weight, point.accuracy, point.within_budget) == (0.3, 1.0, True)
    assert record.variance_ratio == (pytest.approx(point.variance_ratio),)
    # Two channels of three are noise and lose their variance; the third keeps some of its own.
    assert 0 < record.variance_ratio[0] < 1 / 3
    assert asdict(record)["curve"][0]["within_budget"] is True
    assert not any(parameter.requires_grad for parameter in result.teacher.parameters())


def test_the_teacher_is_not_changed():
    teacher, before = Level(), Level().state_dict()
    teacher.stage.eval()
    rng = torch.get_rng_state()
    detoxify(teacher, source(), stages=("stage",), raises=0, steps=3, batch_size=48)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert not teacher.stage.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_gradients_of_the_caller_have_no_effect_and_none_are_returned():
    teacher, data = Level(), source()
    for parameter in teacher.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = detoxify(
        *(teacher, data), stages=("stage",), variance_weight=0.3, raises=0, batch_size=48, steps=5
    )
    expected = cleaned(steps=5)
    assert torch.equal(found.teacher.masks[0].mask, expected.teacher.masks[0].mask)
    assert all(parameter.grad is None for parameter in found.teacher.parameters())
    assert all(parameter.grad is not None for parameter in teacher.parameters())


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_the_caller_have_no_effect(mode, tmp_path):
    expected = cleaned(steps=5).teacher.masks[0]
    teacher, data = Level(), source()
    with mode():
        found = detoxify(
            *(teacher, data),
            stages=("stage",),
            variance_weight=0.3,
            raises=0,
            batch_size=48,
            steps=5,
        ).teacher
    assert torch.equal(found.masks[0].mask, expected.mask)
    assert torch.equal(found.masks[0].pattern, expected.pattern)
    save_detoxified(detoxified_wrn(), tmp_path / "m")
    with mode():
        assert not any(each.is_inference() for each in load_detoxified(tmp_path / "m").parameters())


def test_the_same_seed_gives_the_same_masks():
    first, again, other = (cleaned(seed=seed, steps=5).teacher.masks[0] for seed in (0, 0, 1))
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.pattern, again.pattern)
    assert not torch.equal(first.pattern, other.pattern)


def test_missing_labels_are_replaced_by_predictions():
    labelled, data = cleaned(steps=5), Unlabelled(source())
    found = detoxify(
        *(Level(), data), stages=("stage",), variance_weight=0.3, raises=0, batch_size=48, steps=5
    )
    # This teacher errs on no image, and without its masks it says so.
    assert torch.equal(found.teacher.masks[0].mask, labelled.teacher.masks[0].mask)
    assert torch.equal(found.teacher.masks[0].pattern, labelled.teacher.masks[0].pattern)


def test_masks_do_not_affect_the_replacement_of_missing_labels():
    batch = next(source().batches("train", batch_size=48))
    flat = FeatureMask(torch.full((3, 2, 2), 9.0), cap=1.0)  # every image is of the second class
    nn.init.ones_(flat.mask)
    worn = DetoxifiedTeacher(Level(), {"stage": flat})
    assert bool((worn(batch.images).argmax(1) == 1).all())
    some = torch.where(batch.labels == 0, UNLABELLED, batch.labels)
    wrong = 1 - batch.labels
    seen = []
    for labels in (torch.full_like(some, UNLABELLED), some, wrong):
        given = batch._replace(labels=labels)

        def watch(_masked, features, shown):
            seen.append(shown.labels)
            return features[0].sum()

        cleaning = detoxification._Cleaning(
            worn, [], "position", lambda given=given: given, 0.05, "no", watch
        )
        cleaning.run(1.0, 1)
    assert all(map(torch.equal, seen, (batch.labels, batch.labels, wrong)))


def test_no_mask_exceeds_the_cap():
    result = cleaned(cap=0.3, variance_weight=50.0)
    mask = result.teacher.masks[0].mask
    assert mask.max().item() == pytest.approx(0.3)
    assert mask.min() >= 0
    # Features that are mixed by at most the cap keep (1 - cap) squared of their variance.
    assert result.record.variance_ratio[0] > 0.7**2 * 0.9


def test_without_steps_to_learn_patterns_are_the_mean_features():
    teacher = cleaned(steps=1, lr=1e-9).teacher
    expected = (source().train.images / 255).mean(0) - 0.5
    torch.testing.assert_close(teacher.masks[0].pattern, expected, rtol=1e-3, atol=1e-4)


def test_when_no_lambda_holds_the_budget_the_logits_are_the_teachers():
    result = cleaned(variance_weight=1e9, growth=10.0, raises=0, lowerings=2, bisections=2)
    assert [point.variance_weight for point in result.record.curve] == [1e9, 1e8, 1e7]
    assert not any(point.within_budget for point in result.record.curve)
    assert all(point.accuracy < 0.9 for point in result.record.curve)
    assert result.record.accuracy_after == result.record.accuracy_before == 1.0
    assert result.record.mean_mask == (0.0,)
    assert result.record.variance_ratio == (1.0,)
    images = torch.rand(4, 3, 2, 2)
    assert torch.equal(result.teacher(images), Level().eval()(images))


def test_a_first_lambda_that_breaks_the_budget_is_lowered():
    result = cleaned(variance_weight=1e6, growth=100.0, raises=0, lowerings=4, bisections=0)
    held = [point.within_budget for point in result.record.curve]
    assert held == [False] * (len(held) - 1) + [True]
    assert len(held) > 1
    assert result.record.mean_mask[0] > 0
    assert result.record.accuracy_after == 1.0


def test_lambda_is_raised_and_lowered_no_more_often_than_asked():
    held = cleaned(variance_weight=1e-3, growth=2.0, raises=1, lowerings=9, bisections=9)
    assert [point.variance_weight for point in held.record.curve] == [1e-3, 2e-3]
    broken = cleaned(variance_weight=1e9, growth=10.0, raises=9, lowerings=1, bisections=9)
    assert [point.variance_weight for point in broken.record.curve] == [1e9, 1e8]


def test_lambda_grows_until_the_budget_breaks_and_is_bisected_then(monkeypatch):
    # Hits of the teacher, of five lambdas, and of what is handed back.
    scripted, masks = iter([100, 99, 98, 90, 99, 97, 99]), []

    def accuracy(model: nn.Module, _data: object, split: str) -> Proportion:
        assert split == "validation"
        if isinstance(model, DetoxifiedTeacher):
            masks.append(model.masks[0].mask.detach().clone())
        return Proportion(next(scripted), 100)

    monkeypatch.setattr(detoxification, "accuracy_on", accuracy)
    result = cleaned(
        variance_weight=1.0, growth=2.0, raises=5, bisections=2, steps=3, accuracy_budget=0.02
    )
    curve = result.record.curve
    assert [point.variance_weight for point in curve] == pytest.approx(
        [1, 2, 4, 8**0.5, (4 * 8**0.5) ** 0.5]
    )
    assert [point.accuracy for point in curve] == [0.99, 0.98, 0.90, 0.99, 0.97]
    assert [point.within_budget for point in curve] == [True, True, False, True, False]
    # The masks of the last lambda within the budget are those that stay.
    assert torch.equal(result.teacher.masks[0].mask, masks[3])
    assert not torch.equal(masks[3], masks[4])
    assert result.record.variance_ratio == (pytest.approx(curve[3].variance_ratio),)


def test_stages_are_found_by_probing():
    data = InMemory(
        "toy",
        ("a", "b", "c"),
        *(
            Labelled(torch.randint(256, (12, 1, 8, 8)).to(torch.uint8), torch.arange(12) % 3)
            for _ in range(3)
        ),
    )
    record = detoxify(wrn(), data, steps=1, raises=0, batch_size=6).record
    assert record.stages == ("network.groups.1.0.bn1", "network.groups.2.0.bn1", "network.bn")
    assert len(record.mean_mask) == len(record.variance_ratio) == 3


def test_a_transformers_tokens_are_masked_saved_and_read_again(tmp_path):
    images = torch.randint(256, (6, 3, 32, 32)).to(torch.uint8)
    data = InMemory("toy", ("a", "b"), *[Labelled(images, torch.arange(6) % 2)] * 3)
    teacher = build(Spec("timm/deit_tiny_patch16_224", 2, (3, 32, 32)), seed=0)
    made = detoxify(teacher, data, steps=2, raises=0, batch_size=6).teacher
    assert [tuple(mask.mask.shape) for mask in made.masks] == [(5, 192)] * 4
    save_detoxified(made, tmp_path / "m")
    assert torch.equal(load_detoxified(tmp_path / "m")(images / 255), made(images / 255))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cap": 0.0}, "cap is 0.0; expected above 0 and at most 1"),
        ({"cap": 1.5}, "cap is 1.5; expected above 0 and at most 1"),
        (
            {"accuracy_budget": 1.0},
            "accuracy_budget is 1.0; expected at least 0 and below 1",
        ),
        (
            {"accuracy_budget": -0.1},
            "accuracy_budget is -0.1; expected at least 0 and below 1",
        ),
        ({"variance_weight": 0.0}, "variance_weight is 0.0; expected more than 0"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"lr": -1.0}, "lr is -1.0; expected more than 0"),
        ({"batch_size": 1}, "batch_size is 1; expected at least 2"),
        (
            {"raises": -1},
            "raises is -1; expected at least 0",
        ),
        (
            {"lowerings": -1},
            "lowerings is -1; expected at least 0",
        ),
        (
            {"bisections": -2},
            "bisections is -2; expected at least 0",
        ),
        (
            {"growth": 1.0},
            "growth is 1.0; expected more than 1",
        ),
        ({"step": 5}, "unknown option 'step'; did you mean 'steps'?"),
        ({"stages": ("stag",)}, "no module 'stag' in Level; did you mean 'stage'?"),
    ],
)
def test_refusals_say_what_is_wrong(changes, text):
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        cleaned(**changes)


def test_a_stage_that_never_varies_is_refused():
    teacher = Level()
    teacher.stage = nn.Threshold(5.0, 0.0)
    text = "the features of 'stage' do not vary on clean images; leave it out"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        detoxify(teacher, source(), stages=("stage",))


# The file


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_detoxified(path)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in text
    assert text.startswith(f"{path} ")
    return text.removeprefix(f"{path} ")


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, **changes: object) -> Path:
    """A good file with some tensors or parts of its description changed."""
    save_detoxified(detoxified_wrn(), path)
    good, description = read_safetensors(path)
    write_safetensors(path, {**good, **(tensors or {})}, {**description, **changes})
    return path


def test_a_saved_teacher_comes_back_with_the_same_logits(tmp_path):
    made, path = detoxified_wrn(), tmp_path / "new" / "teacher.safetensors"
    images = torch.rand(5, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    save_detoxified(made, path, provenance={"seed": 1})
    again = load_detoxified(path)
    assert torch.equal(again(images), made(images))
    assert again.locations == made.locations
    assert [mask.cap for mask in again.masks] == [0.4, 1.0]
    assert again.teacher.spec == made.teacher.spec
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.modules())
    assert read_safetensors(path)[1]["provenance"] == {"seed": 1}
    save_detoxified(again, tmp_path / "again", provenance={"seed": 1})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_what_detoxify_returns_can_be_saved(tmp_path):
    images = torch.randint(256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    held = Labelled(images.to(torch.uint8), torch.arange(12) % 3)
    data = InMemory("toy", ("a", "b", "c"), held, held, held)
    made = detoxify(wrn(), data, steps=2, raises=0, batch_size=6).teacher
    save_detoxified(made, tmp_path / "m")
    batch = next(data.batches("test", batch_size=12))
    assert torch.equal(load_detoxified(tmp_path / "m")(batch.images), made(batch.images))


def test_only_our_own_networks_can_be_saved(tmp_path):
    made = DetoxifiedTeacher(Two(), {"first": filled((1, 1, 2), mask=0.5, pattern=1.0)})
    text = "Two cannot be saved; expected a models.Classifier"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        save_detoxified(made, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_plain_models_and_detoxified_teachers_are_not_confused(tmp_path):
    save(wrn(), tmp_path / "plain")
    assert "does not fit the architecture 'wrn-10-1': " in refusal(tmp_path / "plain")
    save_detoxified(detoxified_wrn(), tmp_path / "masked")
    with pytest.raises(InputError, match=r"does not fit the architecture 'wrn-10-1': "):
        load(tmp_path / "masked")


def test_truncation_is_refused(tmp_path):
    path = rewritten(tmp_path / "m")
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith("is not a readable safetensors file: ")


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([["network.bm", 1.0]], "no module 'network.bm' in Classifier; did you mean 'network.bn'?"),
        ([["network.bn", 2.0]], "cap is 2.0; expected above 0 and at most 1"),
        ([["network.bn", float("nan")]], "cap is nan; expected above 0 and at most 1"),
        ([["network.bn"]], "not enough values to unpack (expected 2, got 1)"),
        (
            [["network.bn", None]],
            "float() argument must be a string or a real number, not 'NoneType'",
        ),
        (7, "'int' object is not iterable"),
    ],
)
def test_a_damaged_description_of_masks_is_refused(tmp_path, masks, reason):
    path = rewritten(tmp_path / "m", masks=masks)
    assert refusal(path) == f"has a damaged description of its masks: {reason}"


def test_masks_that_do_not_fit_the_network_are_listed(tmp_path):
    tensors = {
        "masks.0.mask": torch.zeros(32, 4, 5),
        "masks.1.pattern": torch.zeros(64, 2, 2, dtype=torch.float16),
        "masks.2.mask": torch.zeros(1),
    }
    assert refusal(rewritten(tmp_path / "m", tensors)) == (
        "does not fit the architecture 'wrn-10-1': 1 unexpected ('masks.2.mask'); "
        "1 misshapen (masks.0.mask (32, 4, 5) for (32, 4, 4)); "
        "1 mistyped (masks.1.pattern torch.float16 for torch.float32)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masks.0.mask", 0.41),
        ("masks.0.mask", -0.01),
        ("masks.0.mask", float("nan")),
        ("masks.0.pattern", float("inf")),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, name, value):
    tensor = torch.zeros(32, 4, 4)
    tensor[-1, -1, -1] = value
    assert refusal(rewritten(tmp_path / "m", {name: tensor})) == (
        "has a mask outside [0, 0.4], or a pattern that is not finite, for 'network.groups.2.0.bn1'"
    )


def test_a_damaged_teacher_inside_is_refused(tmp_path):
    tensors = {"teacher.network.head.bias": torch.full((3,), float("nan"))}
    assert refusal(rewritten(tmp_path / "m", tensors)) == (
        "has values that are not finite in 'network.head.bias'"
    )


@pytest.mark.parametrize("side", [10**6, 10**12, 10**30])
def test_a_claim_of_huge_images_takes_no_memory(tmp_path, side):
    path = rewritten(tmp_path / "m")
    spec = {**read_safetensors(path)[1]["spec"], "image_shape": [1, side, side]}
    refusal(rewritten(path, spec=spec))
