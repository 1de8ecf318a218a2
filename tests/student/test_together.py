"""Several processes train the student of one process."""

import pytest
import torch

from robustkd.core.errors import UsageError
from robustkd.student.distillation import distill
from robustkd.training.processes import ONE, Processes
from tests.marks import slow
from tests.student.test_distillation import DATA, net
from tests.student.together import CASES, furthest, together, train

CLOSE = 1e-9
"""Largest distance in double precision, relative to the norm of a tensor."""


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("hardening, a short last batch, two parts of each", 2),
        *(slow(case, count) for case in CASES for count in (2, 4)),
    ],
)
def test_the_student_is_that_of_one_process(case, count):
    alone = train(case, ONE)
    for found in together(count, case):
        assert furthest(found["student"], alone["student"]) < CLOSE
        if alone["changes"]:
            assert furthest(found["changes"], alone["changes"]) < CLOSE
        for epoch, expected in zip(found["epochs"], alone["epochs"], strict=True):
            assert epoch == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_losses_that_need_whole_batches_are_not_divided():
    with pytest.raises(UsageError, match=r"^the loss 'rkd' needs whole batches, but there are 2 "):
        distill(
            net(), DATA, teacher=net(1), losses={"kd": 1.0, "rkd": 1.0}, processes=Processes(0, 2)
        )


def test_the_cases_train_the_student():
    alone = train("labels and logits", ONE)
    before = net().state_dict()
    assert furthest(alone["student"], {k: v.double() for k, v in before.items()}) > 0.01
    assert all(torch.isfinite(v).all() for v in alone["student"].values())
