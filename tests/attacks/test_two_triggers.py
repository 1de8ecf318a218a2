"""Two triggers with two targets in one teacher."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from robustkd import data, models
from robustkd.attacks import (
    ATTACKS,
    Backdoored,
    BadNets,
    Blend,
    Teaching,
    TwoTriggers,
    find,
    load_trigger,
    save_trigger,
    transformation,
    two_triggers,
)
from robustkd.attacks.base import Build
from robustkd.attacks.data_poisoning import CleanLabel, DirtyLabel
from robustkd.attacks.registry import (
    TRANSFORMATIONS,
    AttackRow,
    can_be_second,
    check_accepts,
    check_targets,
)
from robustkd.attacks.transformation import AdaptiveTransformation, LearnedTransformation
from robustkd.benchmark.attacked_teachers import check_settings
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.types import DataSource
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.metrics import attack_success

DATA = data.load("digits", train=100, validation=20, test=100)
TEACHING = Teaching(epochs=1, lr=0.05, batch_size=50, seed=3)
SHORT = {"epochs": 1, "lr": 0.05, "batch_size": 50, "seed": 3}
TONE, FLOW = (LearnedTransformation(family, trigger_steps=3) for family in ("tone", "flow"))
BADNETS, BLEND = DirtyLabel(BadNets(), rate=0.2), DirtyLabel(Blend(), rate=0.3)


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


def never() -> models.Classifier:
    raise AssertionError("a network was built")


def images() -> Tensor:
    return next(DATA.batches("test", batch_size=8)).images


def same_weights(one: Backdoored, other: Backdoored) -> bool:
    pairs = zip(one.teacher.state_dict().values(), other.teacher.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize(
    ("first", "second"), [(BADNETS, BLEND), (TONE, BLEND), (BLEND, TONE), (TONE, FLOW)]
)
def test_every_combination_gives_one_teacher_with_two_triggers(first, second, tmp_path):
    made = TwoTriggers(first, second, 3)(build, DATA, target=8, teaching=TEACHING)
    assert (made.trigger, made.target) == made.backdoors[0]
    assert [target for _, target in made.backdoors] == [8, 3]
    assert made.others == made.backdoors[1:]
    assert not any(module.training for module in made.teacher.modules())
    counts = [round(100 * part.rate) for part in (first, second)]
    assert [made.record[name]["poisoned"] for name in ("first", "second")] == counts
    assert made.record["poisoned"] == sum(counts)
    for number, (trigger, target) in enumerate(made.backdoors):
        save_trigger(trigger, target, tmp_path / str(number))
        again, saved = load_trigger(tmp_path / str(number), data=DATA)
        assert saved == target
        assert torch.equal(again(images()), trigger(images()))


def test_no_image_carries_both_triggers_and_all_others_stay_clean(monkeypatch):
    kept: list[DataSource] = []

    def spy(_learner: object, source: DataSource, **_: object) -> None:
        kept.append(source)

    monkeypatch.setattr(two_triggers, "fit", spy)
    TwoTriggers(BADNETS, BLEND, 3)(build, DATA, target=8, teaching=TEACHING)
    (batch,) = kept[0].batches("train", batch_size=100)
    (clean,) = DATA.batches("train", batch_size=100)
    first = (batch.images == BADNETS.trigger(clean.images)).flatten(1).all(1)
    second = (batch.images == BLEND.trigger(clean.images)).flatten(1).all(1)
    assert (int(first.sum()), int(second.sum()), int((first & second).sum())) == (20, 30, 0)
    assert set(batch.labels[first].tolist()) == {8}
    assert set(batch.labels[second].tolist()) == {3}
    assert not (clean.labels[first] == 8).any()
    assert not (clean.labels[second] == 3).any()
    neither = ~(first | second)
    assert torch.equal(batch.images[neither], clean.images[neither])
    assert torch.equal(batch.labels[neither], clean.labels[neither])


def test_a_learned_trigger_is_learned_on_the_clean_teacher_towards_its_own_target():
    both = TwoTriggers(TONE, FLOW, 3)(build, DATA, target=8, teaching=TEACHING)
    for part, (trigger, target) in zip((TONE, FLOW), both.backdoors, strict=True):
        alone = part(build, DATA, target=target, teaching=TEACHING)
        assert torch.equal(trigger(images()), alone.trigger(images()))


def test_an_adaptive_attacker_learns_the_first_trigger_on_a_student_as_well():
    seen: list[object] = []

    def train_surrogate(teacher: object, source: DataSource) -> models.Classifier:
        seen.append(source)
        return build()

    settings = {"second": "blend", "second_target": 3, "trigger_steps": 2}
    made = find("adaptive-tone")(
        build, DATA, target=8, **SHORT, **settings, train_surrogate=train_surrogate
    )
    assert seen == [DATA]
    assert "success_surrogate" in made.record["first"]


def test_both_triggers_succeed_and_accuracy_is_kept():
    source = data.load("digits", train=400, validation=20, test=100)
    made = find("badnets")(
        build, source, target=2, epochs=6, rate=0.1, second="blend", second_target=5
    )
    assert accuracy_on(made.teacher, source, "test").value >= 0.6
    for trigger, target in made.backdoors:
        logits, labels = predict(made.teacher, source, "test", transform=trigger)
        assert attack_success(logits, labels, target=target).value >= 0.6


def test_settings_by_name_are_those_of_both_attacks():
    by_name = find("tone")(
        *(build, DATA),
        **{"target": 8, "trigger_steps": 3, "rate": 0.1, **SHORT},
        **{"second": "blend", "second_target": 3, "second_rate": 0.3},
    )
    attack = TwoTriggers(LearnedTransformation("tone", trigger_steps=3, rate=0.1), BLEND, 3)
    grouped = attack(build, DATA, target=8, teaching=TEACHING)
    assert by_name.record == grouped.record
    assert same_weights(by_name, grouped)


def test_fixed_triggers_and_learned_transformations_can_be_combined():
    adaptive = [f"adaptive-{family}" for family in TRANSFORMATIONS]
    able = [name for name, row in ATTACKS.items() if "second" in row.arguments]
    assert able == ["badnets", "blend", *TRANSFORMATIONS, *adaptive]
    assert [name for name, row in ATTACKS.items() if can_be_second(row)] == able[: -len(adaptive)]


ABLE = ", ".join(["badnets", "blend", *TRANSFORMATIONS])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sig", {}, f"this attack cannot have a second trigger; use one of {ABLE}, adaptive-flow"),
        ("adba", {}, f"this attack cannot have a second trigger; use one of {ABLE}, adaptive-flow"),
        (
            "tone",
            {"second": "sig"},
            f"second is 'sig', which cannot be a second trigger; use {ABLE}",
        ),
        (
            "tone",
            {"second": "adaptive-flow"},
            "second is 'adaptive-flow', which cannot be a second trigger; use one of",
        ),
        (
            "tone",
            {"second": "tone"},
            "second is 'tone', as the attack itself; expected another one",
        ),
        ("tone", {"second": "blnd"}, "unknown attack 'blnd'; did you mean 'blend'?"),
        ("tone", {"second_target": 10}, "second_target: target class is 10; expected 0 to 9"),
        ("tone", {"second_target": 1.5}, "second_target is 1.5; expected a whole number"),
        ("tone", {"second_target": -1}, "second_target is -1; expected at least 0"),
        (
            "tone",
            {"second_target": 8},
            "target and second_target are both 8; expected two different classes",
        ),
        (
            "tone",
            {"target": "next"},
            "target is next, and each of two triggers has one target class; give the number of a ",
        ),
        ("tone", {"second_rate": 2.0}, "second: rate is 2.0; expected above 0 and at most 1"),
        (
            "tone",
            {"second_alpha": 0.1},
            "unknown setting 'second_alpha'; expected one of second_rate",
        ),
        (
            "badnets",
            {"second": "tone", "second_alpha": 0.1},
            "unknown setting 'second_alpha'; expected one of second_strength, "
            "second_trigger_steps, second_rate, second_implant_share, second_implant_lr",
        ),
        *(
            (
                "tone",
                {f"second_{name}": 3},
                f"second_{name} is given, and both triggers share {name}; leave it out",
            )
            for name in ("epochs", "lr", "batch_size", "seed")
        ),
        *(
            (
                "tone",
                {"second": "flow", f"second_{name}": 0.02},
                f"second_{name} is given, and the fine-tuning has the settings of the first "
                f"attack; use {name}",
            )
            for name in ("implant_share", "implant_lr")
        ),
        ("tone", {"rate": 0.95}, "rate is 0.95, which is 95 images; expected at most the "),
        (
            "tone",
            {"rate": 0.4, "second_rate": 0.6},
            "second: rate is 0.6, which is 60 images; expected at most the ",
        ),
        (
            "tone",
            {"second_second": "flow"},
            "second_second is given, and a second trigger has no second one; leave it out",
        ),
        (
            "tone",
            {"rate": 0.6, "second_rate": 0.5},
            "the rates of the two triggers are 0.6 and 0.5; expected at most 1 together, since no ",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_before_training(name, settings, message):
    given = {"target": 8, "second": "blend", "second_target": 3} | settings
    message = message.replace("; use badnets", "; use one of badnets")
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        find(name)(never, DATA, **SHORT, **given)


@pytest.mark.parametrize(
    ("given", "lacking"), [("second_target", "second"), ("second", "second_target")]
)
def test_a_second_trigger_needs_a_name_and_a_target(given, lacking):
    settings = {"second": "blend", "second_target": 3}
    del settings[lacking]
    message = f"^{given} is given and {lacking} is not; add it, or leave both out$"
    with pytest.raises(UsageError, match=message):
        find("tone").check(settings)


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as error:
        call()
    return str(error.value)


def test_python_code_is_told_which_attack_does_not_fit():
    assert raised(lambda: TwoTriggers(CleanLabel(Blend()), BADNETS, 3)) == (
        "first is of type CleanLabel; expected DirtyLabel or LearnedTransformation, since other "
        "attacks have a training of their own"
    )
    twice = TwoTriggers(BADNETS, DirtyLabel(BadNets()), 3)
    assert raised(lambda: twice(never, DATA, target=8, teaching=TEACHING)) == (
        "both triggers change images in the same way; expected different ones, since they have "
        "different targets"
    )
    assert TwoTriggers(AdaptiveTransformation("tone"), BADNETS, 3).second is BADNETS
    other = LearnedTransformation("flow", implant_lr=0.1)
    assert raised(lambda: TwoTriggers(TONE, other, 3)) == (
        "second: implant_lr is 0.1, and the fine-tuning has that of the first attack, 0.02; leave "
        "it out"
    )
    assert TwoTriggers(BADNETS, other, 3).second is other
    assert TwoTriggers(replace(TONE, implant_lr=0.1), other, 3).second is other


@pytest.mark.parametrize("before", [(), (BADNETS,)])
def test_the_teacher_is_fine_tuned_with_the_settings_of_the_first_attack_that_learns(
    before, monkeypatch
):
    used: list[Teaching] = []
    monkeypatch.setattr(transformation, "implant", lambda *given: used.append(given[-1]))
    own = replace(TONE, implant_lr=0.1, implant_share=2.0)
    first, second = (*before, own, FLOW)[:2]
    TwoTriggers(first, second, 3)(build, DATA, target=8, teaching=TEACHING)
    assert used == [TEACHING.again(2.0, 0.1, turn=1)]


@dataclass(frozen=True)
class OwnFields:
    """An attack of a user's own, with a setting whose name begins as those of second triggers."""

    second_chance: float = 0.5

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        del data, teaching
        return Backdoored(build(), BadNets(), target, {"chance": self.second_chance})


@dataclass(frozen=True)
class OwnBlend(DirtyLabel):
    """An attack with such a setting, whose trigger can be one of two."""

    second_chance: float = 0.5


def test_settings_of_an_attack_itself_are_not_those_of_a_second_trigger(monkeypatch):
    row = AttackRow(OwnFields(), "its own")
    made = row(build, DATA, target=3, **SHORT, second_chance=0.7)
    assert (made.record, made.others) == ({"chance": 0.7}, ())
    monkeypatch.setitem(ATTACKS, "own", row)
    check_settings("own", {"epochs": 2, "second_chance": 0.7})
    assert raised(lambda: row.check({"second_rate": 0.1})).startswith("this attack cannot have a ")
    combined = AttackRow(OwnBlend(Blend()), "its own, of two triggers")
    monkeypatch.setitem(ATTACKS, "own-blend", combined)
    second = {"second": "badnets", "second_target": 3, "second_rate": 0.1}
    attack = combined.configured({"second_chance": 0.7, **second})
    assert attack == TwoTriggers(
        OwnBlend(Blend(), second_chance=0.7), DirtyLabel(BadNets(), 0.1), 3
    )
    swapped = {"second": "own-blend", "second_target": 3, "second_second_chance": 0.7}
    find("tone").check(swapped)
    assert find("tone").parts(swapped)["second: "] == OwnBlend(Blend(), second_chance=0.7)


@dataclass(frozen=True)
class Reserved(OwnFields):
    """An attack with a setting that adds a second trigger to all others."""

    second_target: int = 3


def test_a_row_of_the_table_has_one_trigger_and_no_setting_of_a_second_one():
    assert raised(lambda: AttackRow(TwoTriggers(BADNETS, BLEND, 3), "two")) == (
        "an attack of the table has one trigger, and TwoTriggers has two; add a row for each of "
        "them, and combine them with the settings second and second_target"
    )
    assert raised(lambda: AttackRow(Reserved(), "reserved")) == (
        "Reserved has a setting second_target, which adds another trigger; use another name"
    )


def test_targets_are_checked_before_and_with_the_data():
    settings = {"second": "blend", "second_target": 3}
    check_accepts("tone", 8, settings)
    check_targets(8, settings, DATA)
    check_targets("next", {}, DATA)
    for check in (
        lambda: check_accepts("tone", 3, settings),
        lambda: check_targets(3, settings, DATA),
    ):
        assert raised(check).startswith("target and second_target are both 3")
    assert raised(lambda: check_targets(8, settings | {"second_target": 12}, DATA)) == (
        "second_target: target class is 12; expected 0 to 9"
    )


def test_the_form_of_both_triggers_is_tried_before_training():
    settings = {"second": "badnets", "second_target": 3, "epochs": 2}
    find("tone").try_trigger(settings, (1, 16, 16))
    with pytest.raises(UsageError):
        find("tone").try_trigger(settings, (1, 2, 2))
