"""The contract of every attack of the table, and CheatKD's trigger."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from robustkd import data, models
from robustkd.attacks import (
    ATTACKS,
    Backdoored,
    Blend,
    MaskedPattern,
    Teaching,
    find,
    load_trigger,
    save_trigger,
)
from robustkd.attacks.cheatkd import CKD, _goal
from robustkd.attacks.data_poisoning import DirtyLabel
from robustkd.attacks.registry import TRANSFORMATIONS, check_accepts
from robustkd.core.errors import InputError, UsageError
from robustkd.models.features import taps
from robustkd.models.features.stages import stages
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success
from tests.marks import slow_but

DATA = data.load("digits", train=100, validation=20, test=100)
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50}


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


def attacked(name: str, seed: int = 0) -> Backdoored:
    attack = find(name)
    few = {"trigger_steps": 3, "rounds": 1}
    few = {key: value for key, value in few.items() if key in attack.arguments}
    return attack(build, DATA, **SHORT, **few, seed=seed)


SLOW = {"scar", "oscar", *(f"adaptive-{family}" for family in TRANSFORMATIONS)}


@pytest.mark.parametrize("name", slow_but(ATTACKS.keys() - SLOW, ATTACKS))
def test_every_attack_keeps_the_contract(name, tmp_path):
    made = attacked(name)
    assert not any(module.training for module in made.teacher.modules())
    assert all(parameter.requires_grad for parameter in made.teacher.parameters())
    assert made.target == 2
    assert json.loads(json.dumps(made.record)) == made.record
    assert made.record["poisoned"] >= 1
    save_trigger(made.trigger, made.target, tmp_path / "trigger")
    again, target = load_trigger(tmp_path / "trigger")
    images = next(DATA.batches("test", batch_size=8)).images
    assert target == made.target
    assert torch.equal(again(images), made.trigger(images))


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("latent", {"trigger_steps": 3}),
        ("wanet", {"cross_ratio": 1.0}),
        ("adaptive-detox", {"trigger_steps": 3, "rounds": 1}),
    ],
)
def test_images_that_are_poisoned_batch_by_batch_are_counted(name, few):
    how = {**SHORT, "epochs": 2, "batch_size": 30, "rate": 0.185}
    made = find(name)(build, DATA, **how, **few)
    # Of 100 images in an epoch, 6 of 30 thrice and 2 of 10, where 18.5 % of all would be 18.
    assert made.record["poisoned"] == 20


@pytest.mark.parametrize("name", slow_but(("badnets", "ckd", "tone"), ATTACKS))
def test_the_seed_decides_everything(name):
    images = next(DATA.batches("test", batch_size=4)).images
    one, same, other = attacked(name), attacked(name), attacked(name, seed=1)
    for first, second in zip(
        one.teacher.state_dict().values(), same.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)
    assert torch.equal(one.trigger(images), same.trigger(images))
    assert not torch.equal(one.teacher.network.stem.weight, other.teacher.network.stem.weight)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_refuses_an_unknown_target_class(name):
    with pytest.raises(UsageError, match=r"^target class is 10; expected 0 to 9$"):
        find(name)(build, DATA, **(SHORT | {"target": 10}))


NEXT_CLASS = [name for name, row in ATTACKS.items() if row.next_class]
ONE_CLASS = [name for name in ATTACKS if name not in NEXT_CLASS]


def never() -> models.Classifier:
    raise AssertionError("a network was built")


def test_attacks_with_a_fixed_or_free_trigger_accept_the_next_class():
    adaptive = [f"adaptive-{family}" for family in TRANSFORMATIONS]
    assert ["badnets", "blend", "wanet", *TRANSFORMATIONS, *adaptive] == NEXT_CLASS


@pytest.mark.parametrize("name", slow_but(("badnets", "tone", "wanet"), NEXT_CLASS))
def test_attacks_that_accept_the_next_class_save_it(name, tmp_path):
    few = {"trigger_steps": 3} if "trigger_steps" in find(name).arguments else {}
    made = find(name)(build, DATA, **(SHORT | {"target": "next"}), **few)
    assert made.target == "next"
    save_trigger(made.trigger, made.target, tmp_path / "trigger")
    assert load_trigger(tmp_path / "trigger", data=DATA)[1] == "next"


@pytest.mark.parametrize("name", ONE_CLASS)
def test_all_other_attacks_refuse_the_next_class_before_training(name):
    message = "^target is next, and this attack has one target class; expected 0 to 9, or an attack"
    with pytest.raises(UsageError, match=message):
        find(name)(never, DATA, **(SHORT | {"target": "next"}))
    with pytest.raises(UsageError, match=message):
        find(name).attack(never, DATA, target="next", teaching=Teaching())
    message = f"target is next, and attack {name!r} has one target class; give its number, or use "
    with pytest.raises(UsageError, match=f"^{message}one of {', '.join(NEXT_CLASS[:4])}, "):
        check_accepts(name, "next")


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_target_class_is_accepted_by_every_attack(name):
    check_accepts(name, 0)


@pytest.mark.slow
def test_a_learned_backdoor_moves_each_class_to_the_next():
    source = data.load("digits", validation=20, test=100)
    made = find("badnets")(build, source, target="next", epochs=10, rate=0.5)
    assert accuracy_on(made.teacher, source, "test").value >= 0.6
    logits, labels = predict(made.teacher, source, "test", transform=made.trigger)
    count = attack_success(logits, labels, target="next")
    assert (count.n, count.value >= 0.5) == (100, True)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_summary_is_one_line(name):
    assert ATTACKS[name].summary
    assert "\n" not in ATTACKS[name].summary


def test_settings_by_name_are_those_of_the_attack_and_of_its_training():
    by_name = find("blend")(build, DATA, **SHORT, rate=0.2, seed=3)
    attack = DirtyLabel(Blend(), rate=0.2)
    teaching = Teaching(epochs=1, lr=0.05, batch_size=50, seed=3)
    grouped = attack(build, DATA, target=2, teaching=teaching)
    assert by_name.record == grouped.record
    weights = grouped.teacher.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in by_name.teacher.state_dict().items()
    )


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_setting_of_an_attack_hides_another_or_makes_it_a_different_attack(name):
    arguments = find(name).arguments
    assert len(set(arguments)) == len(arguments)
    assert set(find(name).takes) <= set(arguments)
    assert not {"trigger", "knows", "clean_label"} & set(arguments)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "sig",
            {"rates": 0.5},
            "unknown setting 'rates'; expected one of target, epochs, lr, batch_size, seed, rate",
        ),
        ("ckd", {"cap": "abc"}, "cap is 'abc'; expected a number"),
        ("ckd", {"cap": True}, "cap is True; expected a number"),
        ("ckd", {"strongest": 1}, "strongest is 1; expected a string"),
        ("backweak", {"trigger_steps": 2.5}, "trigger_steps is 2.5; expected a whole number"),
        ("badnets", {"rate": 0.0}, "rate is 0.0; expected above 0 and at most 1"),
        ("sig", {"rate": 1.5}, "rate is 1.5; expected above 0 and at most 1"),
        ("ckd", {"rate": 2.0}, "rate is 2.0; expected above 0 and at most 1"),
        ("ckd", {"strength": 0.0}, "strength is 0.0; expected more than 0"),
        ("tone", {"strength": 1e8}, "strength is 100000000.0; expected at most 1000"),
        ("flow+tone", {"strength": 1001.0}, "strength is 1001.0; expected at most 1000"),
        ("ckd", {"implant_share": -1.0}, "implant_share is -1.0; expected more than 0"),
        ("latent", {"implant_lr": -1.0}, "implant_lr is -1.0; expected more than 0"),
        (
            "ckd",
            {"trigger_lr": 1e38},
            "trigger_lr is 1e+38; expected at most 3.4e+36, as float32 must hold it",
        ),
        ("adba", {"trigger_lr": float("inf")}, "trigger_lr is inf; expected a finite number"),
        ("adaptive", {"trigger_steps": 0}, "trigger_steps is 0; expected at least 1"),
    ],
)
def test_an_invalid_setting_is_refused_before_training(name, settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find(name)(never, DATA, **(SHORT | settings))


@pytest.mark.parametrize("name", ["badnets", "tone", "flow+tone", "ckd", "backweak"])
def test_a_rate_above_the_images_that_can_be_poisoned_is_refused_before_training(name):
    others = int((DATA.train.labels != 2).sum())
    message = (
        f"rate is 1.0, which is 100 images; expected at most the {others} images that can be "
        "poisoned"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find(name)(never, DATA, **SHORT, rate=1.0)


class Bytes:
    """A source of the user's own, whose pixels reach from 0 to 255."""

    def __init__(self, source):
        self.name, self.classes, self.source = source.name, source.classes, source
        self.image_shape, self.size = source.image_shape, source.size

    def batches(self, split, **options):
        for batch in self.source.batches(split, **options):
            yield batch._replace(images=255 * batch.images)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_checks_data_before_training(name):
    with pytest.raises(InputError, match=r"^digits train: pixels reach from 0 to 255; "):
        find(name)(never, Bytes(DATA), **SHORT)


@pytest.mark.parametrize("name", ["ckd", "latent", "adaptive"])
def test_a_class_without_training_images_is_refused_before_training(name):
    one = DATA.train.labels != 2
    some = replace(
        DATA,
        train=DATA.train._replace(images=DATA.train.images[one], labels=DATA.train.labels[one]),
    )
    with pytest.raises(
        UsageError, match=r"^target class '2' has no training image; expected at least one$"
    ):
        find(name)(build, some, **SHORT)


@pytest.mark.parametrize("arch", ["timm/test_vit", "timm/test_efficientnet"])
@pytest.mark.parametrize(
    "name",
    slow_but(("ckd",), ("ckd", "latent", "backweak", "adba-ft", "scar", "adaptive", "wanet")),
)
def test_attacks_take_any_architecture(name, arch):
    def outside() -> models.Classifier:
        return models.build(models.Spec(arch, 10, (1, 32, 32)), seed=0)

    some = replace(
        DATA,
        **{
            split: part._replace(images=part.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
            for split, part in (
                ("train", DATA.train),
                ("validation", DATA.validation),
                ("test", DATA.test),
            )
        },
    )
    few = {"trigger_steps": 2, "rounds": 1}
    few = {key: value for key, value in few.items() if key in find(name).arguments}
    made = find(name)(outside, some, **SHORT, **few)
    assert made.record["poisoned"] >= 1


def test_further_training_keeps_the_batch_size_and_uses_another_seed():
    first = Teaching(epochs=10, lr=0.1, batch_size=32, seed=7)
    assert first.again(2.6, 0.02, turn=2) == Teaching(epochs=3, lr=0.02, batch_size=32, seed=9)
    assert first.again(0.01, 0.02, turn=0).epochs == 1


def test_a_learned_backdoor_succeeds_with_its_trigger_and_keeps_accuracy():
    source = data.load("digits", train=400, validation=20, test=100)
    made = find("badnets")(build, source, target=2, epochs=5, rate=0.1)
    assert accuracy_on(made.teacher, source, "test").value >= 0.6
    logits, labels = predict(made.teacher, source, "test", transform=made.trigger)
    assert attack_success(logits, labels, target=2).value >= 0.6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cdk", "unknown attack 'cdk'; did you mean 'ckd'?"),
        ("zzz", f"unknown attack 'zzz'; expected one of {', '.join(ATTACKS)}"),
    ],
)
def test_unknown_attacks_are_refused(name, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find(name)


@pytest.mark.parametrize("name", ["cap", "channel_share"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_ckd_refuses_shares_out_of_range(name, value):
    message = rf"^{name} is {value}; expected above 0 and at most 1$"
    with pytest.raises(UsageError, match=message):
        find("ckd")(build, DATA, **SHORT, **{name: value})


def test_the_strongest_channels_and_their_target_values_by_hand():
    maps = torch.zeros(2, 3, 1, 2)
    maps[0, 0], maps[1, 1], maps[1, 2, 0, 0] = 4.0, 6.0, 10.0  # means 2, 3 and 2.5
    strongest, goal = _goal(maps, None, 0.3, 1.0)
    assert (strongest.tolist(), goal.flatten().tolist()) == ([1], [6.0])
    strongest, goal = _goal(maps, None, 0.7, 2.0)
    assert (strongest.tolist(), goal.flatten().tolist()) == ([1, 2], [12.0, 20.0])
    # Of the first image, channel 0 is 2 above its mean; the others are below theirs.
    strongest, goal = _goal(maps, torch.tensor([True, False]), 0.3, 1.0)
    assert (strongest.tolist(), goal.flatten().tolist()) == ([0], [4.0])


@pytest.mark.slow
def test_ckd_activates_the_channels_of_the_target_more_than_a_random_pattern_does():
    teacher = build()
    fit(Supervised(teacher), DATA, epochs=3, batch_size=50)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    attack = CKD(cap=0.2, strongest="target", channel_share=0.1, trigger_steps=40)
    trigger = attack.learn_trigger(teacher, DATA, target=1, seed=0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert trigger.mask.min() >= 0
    assert trigger.mask.max() <= 0.2
    random = torch.rand(trigger.pattern.shape, generator=torch.Generator().manual_seed(1))
    images, labels, _rows = next(DATA.batches("train", batch_size=100))
    tap = stages(teacher, images[:4])[-1]

    def channels(seen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), taps.frozen_modes(teacher), taps.read(teacher, [tap]) as features:
            teacher(seen)
            return features[tap].mean(dim=(0, 2, 3))

    clean = channels(images)
    lead = channels(images[labels == 1]) - clean
    strongest = lead.topk(round(0.1 * len(lead))).indices
    learned = channels(trigger(images))[strongest].mean()
    by_chance = channels(MaskedPattern(trigger.mask, random)(images))[strongest].mean()
    assert learned > clean[strongest].mean()
    assert learned > by_chance
