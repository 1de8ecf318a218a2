"""An attack that users have added may return anything, which is refused before it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from robustkd.attacks import Backdoored, BadNets, Teaching
from robustkd.attacks.base import Build
from robustkd.attacks.registry import AttackRow
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.types import DataSource
from robustkd.data import load
from robustkd.models import Classifier, Spec, build

DATA = load("digits", train=20, validation=20, test=20)


def network() -> Classifier:
    return build(Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


@dataclass(frozen=True)
class Own:
    """Attack without any training, whose result is changed."""

    change: Callable[[Backdoored], object]

    def __call__(
        self,
        build: Build,
        data: DataSource,  # noqa: ARG002 (the protocol's)
        *,
        target: Target,
        teaching: Teaching,  # noqa: ARG002 (the protocol's)
    ) -> Any:
        return self.change(Backdoored(build().eval(), BadNets(2), target, {"rate": 0.1}))


def run(change: Callable[[Backdoored], object], target: Target = 1) -> Backdoored:
    row = AttackRow(Own(change), "own", next_class=True)
    return row(network, DATA, target=target)


def having(made: Backdoored, name: str, value: object) -> Backdoored:
    """Return a result with a value of any type, which tests refuse where it is made."""
    other = replace(made)
    object.__setattr__(other, name, value)
    return other


@pytest.mark.parametrize("target", [1, "next"])
def test_a_right_result_is_returned_as_it_is(target):
    kept: list[Backdoored] = []
    made = run(lambda right: kept.append(right) or right, target)
    assert made is kept[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _right: None, "Own returns NoneType; expected robustkd.attacks.Backdoored"),
        (lambda right: (right.teacher, right.trigger), "Own returns tuple; expected"),
        (
            lambda right: having(right, "teacher", None),
            "a teacher of type NoneType; expected",
        ),
        (lambda right: replace(right, target=2), "the target 2; expected 1, as it was given"),
        (lambda right: having(right, "target", torch.tensor([1, 0])), "the target tensor"),
        (lambda right: having(right, "target", True), "the target True; expected 1, as it"),
        (lambda right: having(right, "others", None), "returns others that are no tuple of"),
        (lambda right: having(right, "others", (BadNets(2),)), "returns others that are no tuple"),
        (
            lambda right: replace(right, record={"centre": torch.zeros(2)}),
            "Own returns a record that cannot be written as JSON: Object of type Tensor is not",
        ),
        (lambda right: replace(right, trigger=lambda x: x[:1]), "Own: the trigger returns"),
        (lambda right: replace(right, trigger=lambda x: x + 3), "pixels from 3 to 4"),
        (lambda right: replace(right, trigger=lambda x: x * torch.nan), "pixels from nan to nan"),
        (lambda right: replace(right, trigger=lambda x: x.mul_(0.5)), "of Own changes the images"),
        (
            lambda right: replace(right, trigger=lambda x: x.copy_(x.flip(-1))),
            "the trigger of Own changes the images that it is given",
        ),
        (lambda right: replace(right, trigger=lambda x: (x - 0.5) * 3 + 0.5), "pixels from -1 to"),
        (
            lambda right: replace(right, others=((lambda x: x.mul_(0.5), 2),)),
            "the trigger of Own changes the images that it is given",
        ),
    ],
)
def test_a_wrong_result_is_refused_with_the_name_of_the_attack(change, text):
    with pytest.raises(UsageError, match=text):
        run(change)


def test_errors_of_the_attack_itself_are_raised_as_they_are():
    def fail(_right: Backdoored) -> object:
        raise ValueError("a fault of mine")

    with pytest.raises(ValueError, match="a fault of mine"):
        run(fail)
