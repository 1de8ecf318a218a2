from __future__ import annotations

import pytest

from robustkd.core.methods import METHODS
from robustkd.report import ResultRow, aggregate, headline, plain_words

from .conftest import make_rows, make_run


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        pytest.param(
            {},
            "Attack success rate: 63.9 % for the ordinary student, 1.2 % for the RobustKD "
            "student, with 0.4 points less accuracy (one seed).",
            id="defended",
        ),
        pytest.param(
            {"default": (0.976, 0.4)},
            "The defence failed on this attack. Attack success rate: 63.9 % for the ordinary "
            "student, 40.0 % for the RobustKD student, with the same accuracy (one seed).",
            id="failed",
        ),
        pytest.param(
            {"default": (0.986, 0.15)},
            "The defence helped, but not enough. Attack success rate: 63.9 % for the ordinary "
            "student, 15.0 % for the RobustKD student, with 1.0 points more accuracy (one "
            "seed).",
            id="helped",
        ),
        pytest.param(
            {"ofd": (0.976, 0.023)},
            "The ordinary student did not inherit the backdoor, so this attack cannot show "
            "what the defence is worth. Attack success rate: 2.3 % for the ordinary student, "
            "1.2 % for the RobustKD student, with 0.4 points less accuracy (one seed).",
            id="not inherited",
        ),
        pytest.param(
            {"ofd": (0.976, 0.023), "default": (0.976, 0.45)},
            "The defence failed on this attack. Attack success rate: 2.3 % for the ordinary "
            "student, 45.0 % for the RobustKD student, with the same accuracy (one seed).",
            id="made worse",
        ),
        pytest.param(
            {"default": (0.776, 0.012)},
            "Large drop of accuracy: the RobustKD student has 77.6 % accuracy, the ordinary "
            "student 97.6 %: 20.0 points less. Attack success rate: 63.9 % for the ordinary "
            "student, 1.2 % for the RobustKD student, but with 20.0 points less accuracy (one "
            "seed).",
            id="costly",
        ),
        pytest.param(
            {"ofd": (0.976, 0.575), "no_teacher": (0.97, 0.877), "default": (0.972, 0.5)},
            "The remaining rate is no higher than on a student without the teacher. Attack success "
            "rate: 57.5 % for the ordinary student, 50.0 % for the RobustKD student, with 0.4 "
            "points less accuracy (one seed). For a student trained without the teacher it is "
            "87.7 %, so much of it is due to the trigger itself, not to inheritance.",
            id="universal perturbation",
        ),
        pytest.param(
            {"no_teacher": (0.97, 0.2)},
            "Attack success rate: 63.9 % for the ordinary student, 1.2 % for the RobustKD "
            "student, with 0.4 points less accuracy (one seed). For a student trained without "
            "the teacher it is 20.0 %.",
            id="strong trigger",
        ),
        pytest.param(
            {"ofd": (0.976, None), "default": (0.972, None)},
            "The attack success rate could not be measured, as no trigger is known: the "
            "RobustKD student has 97.2 % accuracy, the ordinary student 97.6 % (one seed).",
            id="no trigger",
        ),
        pytest.param(
            {"ofd": None},
            "There is no ASR of an ordinary student to compare with: the RobustKD student has "
            "97.2 % accuracy and an attack success rate of 1.2 % (one seed).",
            id="no ordinary student",
        ),
        pytest.param(
            {"default": None},
            "There is no ASR of a RobustKD student to compare with: the ordinary student has "
            "97.6 % accuracy and an attack success rate of 63.9 % (one seed).",
            id="no RobustKD student",
        ),
        pytest.param(
            {"default": None, "ofd": None, "teacher": (0.99, 1.0)},
            "The teacher has 99.0 % accuracy, and its trigger an attack success rate of 100.0 % "
            "(one seed). It was trained with a backdoor: use it for research only.",
            id="teacher only",
        ),
        pytest.param(
            {
                "default": None,
                "additions_kd": (0.96, 0.02),
                "kd": (0.98, 0.75),
                "paper": (0.9, 0.5),
            },
            "Attack success rate: 75.0 % for the ordinary student, 2.0 % for the RobustKD "
            "student, with 2.0 points less accuracy (one seed).",
            id="logits beside logits",
        ),
        pytest.param(
            {"teacher": (0.5, 1.0), "no_teacher": (0.97, 0.0)},
            "The teacher is far less accurate than a student that was trained without it: nobody "
            "would distil from it, so these results cannot show what the defence is worth.",
            id="useless teacher",
        ),
        pytest.param(
            {"ofd": (0.976, 0.1), "kd": (0.98, 0.75), "default": (0.97, 0.02)},
            "Attack success rate: 75.0 % for the ordinary student, 2.0 % for the RobustKD "
            "student, with 1.0 points less accuracy (one seed).",
            id="of two the one with more success",
        ),
        pytest.param(
            {"default": None, "ofd": None, "both": (0.96, None)},
            "The attack success rate could not be measured, as no trigger is known: the "
            "RobustKD student has 96.0 % accuracy (one seed).",
            id="both alone",
        ),
        pytest.param(
            {"teacher": (0.985, None), "ofd": None, "default": (0.82, None)},
            "Large drop of accuracy: the RobustKD student has 82.0 % accuracy, the teacher 98.5 %: "
            "16.5 points less (one seed). The attack success rate could not be measured, as no "
            "trigger is known.",
            id="large drop, no trigger",
        ),
        pytest.param(
            {"teacher": (0.985, None), "ofd": None, "default": (0.975, None)},
            "The RobustKD student has 97.5 % accuracy, the teacher 98.5 %: 1.0 points less (one "
            "seed). The attack success rate could not be measured, as no trigger is known.",
            id="small drop, no trigger",
        ),
        pytest.param(
            {"teacher": (0.9, None), "ofd": None, "default": None, "no_teacher": (0.92, None)},
            "The student without a teacher has 92.0 % accuracy, the teacher 90.0 %: 2.0 points "
            "more (one seed). The attack success rate could not be measured, as no trigger is "
            "known.",
            id="no teacher, no trigger",
        ),
        pytest.param(
            {"teacher": (0.98, 1.0), "ofd": (0.976, 0.639), "default": (0.7, 0.012)},
            "Large drop of accuracy: the RobustKD student has 70.0 % accuracy, the teacher 98.0 %: "
            "28.0 points less. Attack success rate: 63.9 % for the ordinary student, 1.2 % for "
            "the RobustKD student, but with 27.6 points less accuracy (one seed).",
            id="large drop, defended",
        ),
        pytest.param(
            {"teacher": (0.03, None), "ofd": None, "default": (0.02, None)},
            "Large drop of accuracy: the RobustKD student has 2.0 % accuracy, the teacher 3.0 %: "
            "1.0 points less (one seed). The attack success rate could not be measured, as no "
            "trigger is known.",
            id="below 0.8 of the teacher",
        ),
        pytest.param(
            {"default": None, "ofd": None, "kd": (0.97, 0.6), "bcu": (0.96, 0.05)},
            "Attack success rate: 60.0 % for the ordinary student, 5.0 % for the student of BCU "
            "(KD), with 1.0 points less accuracy (one seed).",
            id="a baseline",
        ),
        pytest.param(
            {"default": None, "ofd": (0.97, 0.6), "teacher-ft+ofd": (0.97, 0.5)},
            "The defence failed on this attack. Attack success rate: 60.0 % for the ordinary "
            "student, 50.0 % for the student of ft on teacher (ofd), with the same accuracy (one "
            "seed).",
            id="a defence of the registry",
        ),
        pytest.param(
            {"teacher-ft+ofd": (0.97, 0.5), "ofd+student-ft": (0.97, 0.0)},
            "Attack success rate: 63.9 % for the ordinary student, 1.2 % for the RobustKD "
            "student, with 0.4 points less accuracy (one seed).",
            id="ours before a baseline",
        ),
    ],
)
def test_one_setting(scores, said):
    assert headline(make_rows(**scores)) == said


@pytest.mark.parametrize("method", [name for name, how in METHODS.items() if how.losses])
def test_no_distilled_student_is_left_out(method):
    rows = aggregate(
        [ResultRow(**make_run(method="teacher")), ResultRow(**make_run(method=method, acc=0.5))]
    )
    assert "50.0 % accuracy" in headline(rows)


def test_no_runs():
    assert headline([]) == "There are no runs to report."


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        pytest.param(
            {"no_teacher": (0.97, 0.004)},
            "Of 100 images with the trigger, the ordinary student sends about 64 to the attacker's "
            "class, a student that never met the teacher 0, and the RobustKD student 1. The "
            "ordinary student inherited the backdoor from its teacher; the RobustKD student did "
            "not.",
            id="inherited and removed",
        ),
        pytest.param(
            {"no_teacher": (0.97, 0.5)},
            "Of 100 images with the trigger, the ordinary student sends about 64 to the attacker's "
            "class, a student that never met the teacher 50, and the RobustKD student 1.",
            id="the trigger fools any network",
        ),
        pytest.param(
            {"no_teacher": (0.97, 0.0), "default": (0.97, 0.4)},
            "Of 100 images with the trigger, the ordinary student sends about 64 to the attacker's "
            "class, a student that never met the teacher 0, and the RobustKD student 40.",
            id="not removed",
        ),
        pytest.param(
            {"no_teacher": (0.97, 0.0), "ofd": (0.97, 0.02)},
            "Of 100 images with the trigger, the ordinary student sends about 2 to the attacker's "
            "class, a student that never met the teacher 0, and the RobustKD student 1.",
            id="not inherited",
        ),
        pytest.param({}, "", id="no student without the teacher"),
        pytest.param({"no_teacher": (0.97, 0.0), "ofd": None}, "", id="no ordinary student"),
    ],
)
def test_the_plain_summary_claims_only_what_was_shown(scores, said):
    assert plain_words(make_rows(**scores)) == said


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param({"teacher": (0.3, 1.0), "no_teacher": (0.97, 0.0)}, id="useless teacher"),
        pytest.param({"default": (0.11, 0.0), "no_teacher": (0.97, 0.0)}, id="useless student"),
    ],
)
def test_the_plain_summary_claims_nothing_if_the_headline_warns(scores):
    assert "inherited" not in plain_words(make_rows(**scores))


def test_the_plain_summary_considers_every_seed():
    asr = {"ofd": (0.9, 0.9, 0.9), "no-teacher": (0.0, 0.0, 0.0), "default": (0.0, 0.0, 0.0)}

    def said(**changed: tuple[float, ...]) -> str:
        values = {**asr, **{name.replace("_", "-"): each for name, each in changed.items()}}
        return plain_words(
            aggregate(
                ResultRow(**make_run(method=method, seed=seed, asr=value))
                for method, each in values.items()
                for seed, value in enumerate(each)
            )
        )

    assert "inherited" in said()
    assert "inherited" not in said(ofd=(0.9, 0.9, 0.2))
    assert "inherited" not in said(no_teacher=(0.0, 0.0, 0.2))


def test_one_bad_seed_is_not_hidden_in_the_mean():
    asr = {"ofd": (0.8, 0.8, 0.8), "default": (0.0, 0.0, 0.27)}
    rows = aggregate(
        ResultRow(**make_run(method=method, seed=seed, asr=value))
        for method, values in asr.items()
        for seed, value in enumerate(values)
    )
    assert headline(rows) == (
        "The defence helped, but not enough. Attack success rate: 80.0 % for the ordinary "
        "student, 9.0 % (worst seed 27.0 %) for the RobustKD student, with the same accuracy "
        "(mean of 3 seeds)."
    )


def grid(**asr):
    return aggregate(
        ResultRow(**make_run(attack=attack, method=method, asr=value))
        for attack, pair in asr.items()
        for method, value in zip(("ofd", "default"), pair, strict=True)
    )


def test_a_grid_leaves_controls_out_and_names_the_failures():
    assert headline(grid(ckd=(0.8, 0.02), scar=(0.9, 0.4), badnets=(0.02, 0.01))) == (
        "The ordinary student inherits the backdoor in 2 of 3 settings. Mean attack success "
        "rate there: 85.0 % for the ordinary student, 21.0 % for the RobustKD student (at "
        "worst 40.0 %, scar), with the same accuracy. The RobustKD student exceeds 10 % in 1 "
        "setting: scar."
    )


def of_seeds(attack, **asr_and_acc):
    return [
        ResultRow(**make_run(attack=attack, method=method, seed=seed, asr=asr, acc=acc))
        for method, of_each in asr_and_acc.items()
        for seed, (asr, acc) in of_each.items()
    ]


def test_a_headline_compares_the_means_of_the_same_seeds():
    runs = of_seeds(
        "ckd",
        ofd={0: (0.8, 0.9), 1: (0.6, 0.5)},
        default={0: (0.02, 0.9), 2: (0.06, 0.7)},
    )
    assert headline(aggregate(runs)) == (
        "Attack success rate: 80.0 % for the ordinary student, 2.0 % for the RobustKD student, "
        "with the same accuracy (one seed)."
    )
    other = of_seeds("scar", ofd={0: (0.9, 0.9)}, default={0: (0.04, 0.9)})
    assert headline(aggregate(runs + other)) == (
        "The ordinary student inherits the backdoor in 2 of 2 settings. Mean attack success "
        "rate there: 85.0 % for the ordinary student, 3.0 % for the RobustKD student (at worst "
        "6.0 %, ckd), with the same accuracy."
    )


def test_a_headline_compares_no_students_of_different_seeds():
    runs = of_seeds("ckd", ofd={0: (0.8, 0.9)}, default={1: (0.02, 0.9)})
    assert headline(aggregate(runs)).startswith(
        "There is no ASR of an ordinary student of the same seed to compare with: "
    )


def test_a_grid_of_controls_proves_nothing():
    assert headline(grid(badnets=(0.02, 0.01), blend=(0.1, 0.01))) == (
        "In none of the 2 settings did the ordinary student inherit the backdoor (ASR at most "
        "10.0 %), so they cannot show what the defence is worth."
    )
    assert headline(grid(a=(None, None), b=(None, None))) == (
        "None of the 2 settings has an ASR of both students to compare."
    )


def test_two_triggers_of_a_teacher_are_told_with_the_warning():
    def told(*attacks: str, seeds: int = 1, **known: tuple[str, ...]) -> str:
        rates = (1.0, 0.95)
        return headline(
            aggregate(
                ResultRow(**make_run(method="teacher", attack=attack, asr=asr, seed=seed, **known))
                for seed in range(seeds)
                for attack, asr in zip(attacks, rates, strict=True)
            )
        )

    both = ("tone (with blend)", "blend (with tone)")
    rates = "measured, under 2 triggers with attack success rates of 95.0 % to 100.0 %. "
    assert told(*both) == (
        f"Only the teacher was {rates}It was trained with backdoors: use it for research only."
    )
    several = (
        f"Only teachers were {rates}They were trained with a backdoor: use them for research only."
    )
    assert told(*both, seeds=2) == told("tone", "blend") == several
    assert told("tone (with blend)", "flow (with blend)") == several
    # The names of an attack of the user mean nothing if the results say which triggers belong
    # together.
    assert told("one", "other", attacks=("one", "other")) == told(*both)
    assert told("own (with hat)", "hat (with own)", attacks=()) == several
    unknown = [ResultRow(**make_run(method="teacher", attack=name, asr=None)) for name in "ab"]
    assert headline(aggregate(unknown)) == (
        "These results hold neither a RobustKD student nor an ordinary one."
    )


def drop(teacher: float, student: float, n: int) -> str:
    methods = {"teacher": teacher, "default": student}
    return headline(
        aggregate(
            ResultRow(**make_run(method=method, acc=acc, asr=None, ra=None, n_acc=n))
            for method, acc in methods.items()
        )
    )


@pytest.mark.parametrize(("n", "large"), [(100, False), (357, False), (2000, True)])
def test_a_drop_is_large_if_its_lower_bound_exceeds_three_points(n, large):
    said = drop(0.99, 0.94, n)
    assert said.startswith("Large drop of accuracy: ") is large
    assert "5.0 points less [" in said


def test_the_intervals_of_both_accuracies_and_of_the_drop_are_stated():
    assert drop(0.99, 0.94, 100) == (
        "The RobustKD student has 94.0 % [87.5, 97.2] accuracy, the teacher 99.0 % [94.6, 99.8]: "
        "5.0 points less [-0.5, 11.5] (one seed). The attack success rate could not be measured, "
        "as no trigger is known."
    )


def test_a_grid_names_the_settings_in_which_much_accuracy_was_lost():
    rows = aggregate(
        ResultRow(**make_run(attack=attack, method=method, acc=acc, asr=asr))
        for attack, lost in (("ckd", 0.0), ("scar", 0.3))
        for method, acc, asr in (
            ("teacher", 0.95, 1.0),
            ("ofd", 0.95, 0.8),
            ("default", 0.95 - lost, 0.01),
        )
    )
    assert headline(rows).endswith(
        "Large drop of accuracy from teacher to student in 1 setting: scar."
    )


def test_several_seeds_are_judged_by_the_closest_pair():
    def said(*student: float) -> str:
        accuracies = {"teacher": (0.97, 0.98), "default": student}
        return headline(
            aggregate(
                ResultRow(**make_run(method=method, acc=acc, asr=None, ra=None, seed=seed))
                for method, accs in accuracies.items()
                for seed, acc in enumerate(accs)
            )
        )

    assert said(0.90, 0.93).startswith("Large drop of accuracy: ")
    assert said(0.90, 0.95).startswith("The RobustKD student has 92.5 ± 3.5 % accuracy")
