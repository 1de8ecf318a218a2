"""``verify`` and ``evaluate`` refuse a hostile trigger, and outputs that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustkd import cli
from robustkd.cli.teachers import accuracy_of
from robustkd.core.errors import InputError
from robustkd.models import write_safetensors
from tests.digits_network import write_network
from tests.evaluation.test_measurement import Overflowing, white

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("student") / "student.safetensors")


@pytest.mark.parametrize("command", [("verify", "--no-audit", "--max-asr", "1"), ("evaluate",)])
@pytest.mark.parametrize(
    ("control", "target", "message"),
    [
        (torch.zeros(2, 4, 4) / 0, 0, "has a damaged trigger: control has numbers that are not f"),
        (torch.zeros(2, 400, 400), 0, "has a damaged trigger: the trigger's control has shape (2"),
        (torch.zeros(2, 4, 4), 99, "does not fit 'digits': target class is 99; expected 0 "),
    ],
)
def test_a_hostile_trigger_is_refused_and_named(
    command, control, target, message, student, capsys, tmp_path
):
    path = tmp_path / "t"
    write_safetensors(path, {"control": control}, {"trigger": "flow", "target": target})
    name, *flags = command
    with pytest.raises(SystemExit) as stop:
        cli.main([name, str(student), "--data", "digits", *flags, "--trigger", str(path)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (3, "")
    assert err.startswith(f"robustkd: {path} {message}")
    assert err.count("\n") == 1


def test_a_teacher_with_outputs_that_are_not_finite_gives_no_drop():
    with pytest.raises(
        InputError, match=r"^the outputs of the model are not finite on test images"
    ):
        accuracy_of(Overflowing(float("nan")), white())
