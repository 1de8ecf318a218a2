"""Invalid numbers are refused in one line, before any work."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from robustkd.core.errors import UsageError
from robustkd.core.validation import (
    LARGEST_SEED,
    check_not_negative,
    check_positive,
    check_seed,
    check_whole,
)


@pytest.mark.parametrize("check", [check_positive, check_not_negative])
@pytest.mark.parametrize("value", ["0.1", True, None, 1j, [1]])
def test_values_that_are_not_numbers_are_refused(check, value):
    with pytest.raises(UsageError, match=r"lr is .*; expected a number"):
        check(momentum=1, lr=value)


def test_a_number_that_no_float_can_hold_is_refused():
    with pytest.raises(UsageError, match="lr is too large; expected a number below 1e308"):
        check_positive(lr=10**400)


@pytest.mark.parametrize("value", [1.5, "1", True, None])
def test_values_that_are_not_whole_numbers_are_refused(value):
    with pytest.raises(UsageError, match=r"epochs is .*; expected a whole number"):
        check_whole(batch_size=np.int64(4), epochs=value)


REFUSED = [
    ("DistillJob(*NAMES, seed=-1)", "seed is -1; expected at least 0"),
    ("DistillJob(*NAMES, seed=2**63)", f"seed is {2**63}; expected at most {LARGEST_SEED}"),
    ("DistillJob(*NAMES, seed=1.5)", "seed is 1.5; expected a whole number"),
    ("DistillJob(*NAMES, seed=True)", "seed is True; expected a whole number"),
    ("TrainingConfig(epochs=1.5)", "epochs is 1.5; expected a whole number"),
    ("TrainingConfig(epochs='1')", "epochs is '1'; expected a number"),
    ("TrainingConfig(batch_size=16.5)", "batch_size is 16.5; expected a whole number"),
    ("TrainingConfig(accumulate=1.5)", "accumulate is 1.5; expected a whole number"),
    ("TrainingConfig(lr='0.1')", "lr is '0.1'; expected a number"),
    ("TrainingConfig(ema='0.9')", "ema is '0.9'; expected a number"),
    ("TrainingConfig(warmup_epochs='1')", "warmup_epochs is '1'; expected a number"),
    ("TrainingConfig(precision='fp8')", "precision is 'fp8'; expected no, bf16, fp16"),
    ("NetworkDefence('clp', 'Teacher')", "on is 'Teacher'; expected teacher or student"),
    (
        "DistillJob(*NAMES, method='kd', defence='clp', on='both')",
        "on is 'both'; expected teacher or student",
    ),
]
"""Calls by a user who has no type checker, and the message of the error."""

SCRIPT = """
import sys
from pathlib import Path
from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence
from robustkd.pipeline.job import DistillJob
from robustkd.training.config import TrainingConfig

NAMES = (Path("teacher.pt"), "wrn-10-1", "wrn-10-1")
for call in sys.argv[1:]:
    try:
        eval(call)
        print("accepted")
    except UsageError as error:
        print(error)
"""


def test_calls_from_python_are_checked_before_any_work():
    # In a process of its own, since the types of all calls are checked in this one.
    calls = [call for call, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *calls], capture_output=True, text=True, check=True
    )
    assert dict(zip(calls, done.stdout.splitlines(), strict=True)) == dict(REFUSED)
    check_seed(LARGEST_SEED)
