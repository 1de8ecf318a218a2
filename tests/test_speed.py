"""The comparison of speed runs every row, and only while it is measured."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from robustkd.core.methods import find_method
from robustkd.student.objective import EarlyStop

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SETTING = ("wrn-10-1", "wrn-10-1", (1, 8, 8), 6)


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import speed

        yield speed
    own = ("plain_distillation", "torchdistill_distillation", "mdistiller_distillation")
    for name in ("speed", "pacing", *own):
        del sys.modules[name]


def test_every_row_is_compared_with_the_floor(speed):
    rows = speed.rows_for(speed.Setting(*SETTING), speed.all_rows())
    tried = speed.bench(speed.Setting(*SETTING), "no", 4)
    found = speed.measure(tried, rows, blocks=2, steps=1)
    assert list(found["rows"]) == rows
    assert all(row["n"] == 2 and row["ratio"] > 0 for row in found["rows"].values())
    lines = speed.table([found]).splitlines()
    assert lines[0] == "| step of | wrn-10-1 to wrn-10-1, 1 x 8 x 8, batch 6, fp32 |"
    compiled = speed.table([found | {"compiled": True}]).splitlines()
    assert compiled[0] == "| step of | wrn-10-1 to wrn-10-1, 1 x 8 x 8, batch 6, fp32, compiled |"
    labels = [line.removeprefix("| ").split(" | ")[0] for line in lines[2:-1]]
    assert labels == [speed.ROWS[row] for row in rows]


def test_rows_of_libraries_that_are_not_installed_are_left_out(speed, monkeypatch, capsys):
    monkeypatch.setattr(speed, "find_spec", lambda _name: None)
    assert set(speed.ROWS) - set(speed.all_rows()) == {
        "torchdistill-kd",
        "torchdistill-kd-channels",
        "mdistiller-kd",
        "mdistiller-ofd",
    }
    assert capsys.readouterr().err == (
        "torchdistill is not installed, and its rows are left out; "
        "pip install torchdistill adds them\n"
        "mdistiller is not installed, and its rows are left out; "
        f"pip install git+https://github.com/megvii-research/mdistiller@{speed.toolkit.COMMIT} "
        "adds them\n"
    )


def test_a_row_of_a_library_that_is_asked_for_needs_it(speed, monkeypatch, capsys):
    monkeypatch.setattr(speed, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--rows", "kd", "torchdistill-kd"])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: row torchdistill-kd needs torchdistill: pip install torchdistill\n"
    )


def test_rows_of_mdistiller_are_measured_on_its_size_of_images_only(speed, monkeypatch, capsys):
    rows = ["kd", "mdistiller-kd", "mdistiller-ofd"]
    assert speed.rows_for(speed.SETTINGS["wrn10-32"], rows) == rows
    assert speed.rows_for(speed.SETTINGS["wrn10-28"], rows) == ["kd"]
    monkeypatch.setattr(speed, "find_spec", lambda _name: True)
    given = ["--rows", "mdistiller-ofd", "--settings", "wrn10-32", "wrn10-28"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *given])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: mdistiller has no networks for wrn-10-2 to wrn-10-1, 1 x 28 x 28, batch 64; "
        "expected other settings\n"
    )


def test_torchdistill_takes_the_steps_of_the_script(speed):
    pytest.importorskip("torchdistill")
    tried = speed.bench(speed.Setting(*SETTING), "no", 4)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(images, torch.arange(6)), (1 - images, torch.arange(6))]
    plain, library = (tried._networks(torch.contiguous_format) for _ in range(2))
    speed.plain.distil_logits(*plain, batches, None)
    trainer = speed.library.box(*library, tried._pictures(), 6)
    extended = [(*batch, {}) for batch in batches]
    speed.library.distil(trainer, extended, None, torch.contiguous_format)
    for own, other in zip(library[1].parameters(), plain[1].parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_mdistiller_distils_its_own_networks(speed):
    pytest.importorskip("mdistiller")
    random = torch.Generator().manual_seed(0)
    batches = [(torch.rand(4, 3, 32, 32, generator=random), torch.arange(4))]
    for loss in ("kd", "ofd"):
        teacher, student = (speed.toolkit.network("wrn-10-1", 10) for _ in range(2))
        before = [weights.clone() for weights in student.parameters()]
        kept = [weights.clone() for weights in teacher.parameters()]
        speed.toolkit.distil(speed.toolkit.distiller(loss, teacher, student), batches, None)
        assert not any(map(torch.equal, before, student.parameters()))
        assert all(map(torch.equal, kept, teacher.parameters()))


def test_features_are_compared_in_every_step_that_is_measured(speed):
    until = find_method("default").until
    for taken in (1, 3, 28):
        stop = EarlyStop(until, speed.training_steps(taken))
        for _ in range(taken - 1):
            stop.advance()
        assert stop.share("ofd") > 0


def test_a_program_runs_only_while_its_steps_are_measured(speed):
    taken = []

    def program(pace):
        for step in range(100):
            pace()
            taken.append(step)

    paced = speed.Paced(program)
    assert taken == []
    paced.advance(3)
    time.sleep(0.01)
    assert taken == [0, 1, 2]
    paced.advance(2)
    assert taken == [0, 1, 2, 3, 4]
    paced.end()
    assert len(taken) == 5


def test_the_error_of_a_program_is_raised(speed):
    def program(pace):
        pace()
        raise ValueError("no step")

    paced = speed.Paced(program)
    with pytest.raises(ValueError, match="no step"):
        paced.advance(1)


def test_the_margin_of_the_script_is_the_mean_of_negative_values(speed):
    norm = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -0.3]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(200_000, 3, generator=generator) * norm.weight + norm.bias
    below = torch.stack([values[values < 0].mean() for values in drawn.T])
    torch.testing.assert_close(speed.plain.margin(norm).flatten(), below, rtol=0.02, atol=0.0)


def test_a_folded_teacher_has_the_same_outputs(speed):
    for arch in ("wrn-10-1", "wrn-10-2"):
        tried = speed.bench(speed.Setting(arch, *SETTING[1:]), "no", 4)
        images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = tried.teacher(images)
            folded = speed.fold(tried.teacher)
            torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)
        kept = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        assert kept == {"wrn-10-1": 4, "wrn-10-2": 3}[arch]
