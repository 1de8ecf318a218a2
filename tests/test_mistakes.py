"""Mistakes in Python that a type checker would find end in one line, not in a traceback.

They run in a process of their own, since the suite checks all types.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import robustkd, torch
from torch import nn
data = robustkd.load_data("digits", train=40, validation=20, test=20)
student = robustkd.build(robustkd.Spec("wrn-10-1", 10, data.image_shape), seed=0)
class Other(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.network, self.change = student, change
    def forward(self, images):
        return self.change(self.network(images))
tuples = Other(lambda logits: (logits, logits))
def tell(call):
    try:
        call()
    except robustkd.UsageError as error:
        print(error)
"""
MISTAKES = {
    "robustkd.distill('wrn-10-1', data)": "the student is of type str; expected an nn.Module",
    "robustkd.distill(student, data, teacher='t.pt')": "the teacher is of type str; expected an",
    "robustkd.distill(student, './images')": "data is of type str; expected a data source",
    "robustkd.distill(student, data, teacher=tuples)": "the teacher returns tuple; expected a",
    "robustkd.distill(tuples, data)": "the student returns tuple; expected a tensor of logits",
    "robustkd.distill(student, data, teacher=student, losses='kd')": "losses is 'kd'; expected we",
    "robustkd.distill(student, data, teacher=student, losses=['kd'])": "losses is ['kd']; expected",
    "robustkd.distill(student, data, teacher_taps='network.bn')": "teacher_taps is 'network.bn'; ",
    "robustkd.distill(student, data, student_taps=[])": "student_taps is empty; expected at least",
    "robustkd.detoxify(student, data, stages=[])": "stages is empty; expected at least one module",
    "robustkd.distill(student, data, epoch=1)": "unknown option 'epoch'; did you mean 'epochs'?",
    "robustkd.audit('my-run', data)": "the model is of type str; expected an nn.Module",
    "robustkd.audit(student, './images')": "data is of type str; expected a data source",
    "robustkd.find_perturbations('t.pt', data, ('tone',))": "the teacher is of type str; expected",
    "robustkd.detoxify(tuples, data)": "the teacher returns tuple; expected a tensor of logits",
    "robustkd.export_student('my-run', data, 'out')": "the student is of type str; expected a Cla",
    "robustkd.export_student(student, data, 'o', trigger='t.pt')": "the trigger is of type str",
    "robustkd.export_student(student, data, 'out', target=99)": "target class is 99; expected 0 to",
    "robustkd.run(student, data, 'wrn-10-1')": "teacher is of type Classifier; expected the path",
    "robustkd.run('t.pt', data, student)": "student is of type Classifier; expected the name",
    "robustkd.run('t.pt', [1], 'wrn-10-1', arch='wrn-10-1')": "data is of type list; expected",
    "robustkd.distill(student.half(), data)": "the student does not work with images of shape 2",
}


@pytest.fixture(scope="module")
def told() -> list[str]:
    calls = "\n".join(f"tell(lambda: {call})" for call in MISTAKES)
    ran = subprocess.run(
        [sys.executable, "-c", BEGIN + calls], capture_output=True, text=True, check=False
    )
    assert not ran.returncode, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize("place", range(len(MISTAKES)), ids=list(MISTAKES))
def test_a_mistake_ends_in_one_line(place, told):
    assert len(told) == len(MISTAKES)
    assert told[place].startswith(list(MISTAKES.values())[place])
