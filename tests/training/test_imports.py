"""What a short training does not import."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("torch._dynamo", "torch.distributed.tensor", "sklearn", "pandas", "scipy", "sympy")
CODE = f"""
import sys
import robustkd
from robustkd import models
from robustkd.teacher.match import Wanted

digits = robustkd.load_data("digits", train=40, validation=20, test=20)
spec = models.Spec("wrn-10-1", 10, digits.image_shape)
assert all(tensor.is_meta for tensor in Wanted.by(spec).tensors.values())
teacher, student = models.build(spec, seed=0), models.build(spec, seed=1)
robustkd.distill(student, digits, teacher=teacher, epochs=1, batch_size=20)
assert models.macs(student, digits.image_shape) > 0
print(*sorted(set({HEAVY}) & set(sys.modules)))
"""


def test_distillation_on_digits_imports_neither_the_compiler_nor_scikit_learn():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
