"""Names of methods with a defence: written, read back, and refused if invalid."""

from __future__ import annotations

import re

import pytest

from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence, losses_name, losses_of, split_name
from robustkd.core.methods import METHODS, find_method, label_of, look_up, method_name


@pytest.mark.parametrize("on", ["teacher", "student"])
@pytest.mark.parametrize("base", [*METHODS, "kd+ofd", "kd-1+ofd-0.5"])
def test_a_name_is_read_as_it_was_written(base, on):
    use = NetworkDefence("fine-pruning", on)
    assert split_name(use.around(base)) == (use, base)
    assert split_name(base) == (None, base)


@pytest.mark.parametrize("losses", [{"kd": 1.0}, {"ofd": 0.3, "kd": 2.0}, {"rkd": 0.000001}])
def test_weights_of_losses_are_read_as_they_were_written(losses):
    assert losses_of(losses_name(losses)) == losses


@pytest.mark.parametrize("weight", [1 / 3, 1e-9, 1e12, -1.0])
def test_a_weight_that_a_name_cannot_hold_is_refused(weight):
    with pytest.raises(
        UsageError, match=re.escape(f"weight of distillation loss 'kd' is {weight}")
    ):
        losses_name({"kd": weight})


def test_equal_methods_have_one_name():
    assert method_name("ofd-0.3+kd-1") == "mix"
    assert method_name("teacher-anp+detox+harden") == "teacher-anp+both"
    assert method_name("ofd-2+kd-1.50") == "kd-1.5+ofd-2"


def test_a_defence_is_added_to_all_that_a_method_does():
    how = find_method("teacher-ft-sam+default")
    assert how.defence == NetworkDefence("ft-sam", "teacher")
    assert (how.losses, how.hardening) == (METHODS["default"].losses, METHODS["default"].hardening)
    assert (how.rivals, how.ours) == (METHODS["default"].rivals, True)
    baseline = find_method("mix+student-ft-sam")
    assert (baseline.rivals, baseline.defended, baseline.ours) == (("mix",), True, False)


def test_the_detoxification_is_that_of_the_methods():
    how = find_method("teacher-detox+mix")
    assert how.defence is None
    assert how.detox is not None


def test_labels_are_readable_and_unknown_names_stay():
    assert label_of("teacher-ft-sam+mix") == "ft-sam on teacher (mix)"
    assert label_of("mix+student-i-bau") == "i-bau on student (mix)"
    assert label_of("teacher-ft-sam+older") == "teacher-ft-sam+older"
    assert look_up("older") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("teacher-ft+papr", "unknown method 'papr'; did you mean 'paper'?"),
        (
            "teacher-ft+no-teacher",
            "defence 'ft' is for the teacher, but method 'no-teacher' has none; choose another "
            "method, or clean the student",
        ),
        (
            "mix+student-detox",
            "defence 'detox' adds masks, which a student's file cannot hold; clean the teacher by "
            "it, or choose another defence",
        ),
        (
            "teacher-detox+paper",
            "method 'paper' detoxifies the teacher already; leave defence 'detox' out",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_method(name)
