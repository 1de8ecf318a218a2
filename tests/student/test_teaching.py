"""The teacher in the steps of a distillation: folded where all processes can, and exact."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustkd import data, models
from robustkd.models.features import taps
from robustkd.student import teaching
from robustkd.student.distillation import distill
from robustkd.student.terms import TERMS
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask
from robustkd.training import compiling
from robustkd.training.beginning import first_images
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.processes import ONE, Processes

DATA = data.load("digits", train=96, validation=40, test=20)
SOME = first_images(DATA, torch.device("cpu"))
STAGES = tuple(f"network.groups.{stage}" for stage in range(3))


def net(arch: str = "wrn-10-1", seed: int = 0) -> models.Classifier:
    return models.build(models.Spec(arch, 10, DATA.image_shape), seed=seed)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    trained = net("wrn-10-2", seed=1)
    fit(Supervised(trained), DATA, epochs=2, batch_size=32)
    return trained.eval()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of BatchNorm layers of each network that teaches."""
    found = []
    watch = teaching.Watch

    def noted(model: nn.Module, *rest) -> nn.Module:
        found.append(sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()))
        return watch(model, *rest)

    monkeypatch.setattr(teaching, "Watch", noted)
    return found


@dataclass(frozen=True)
class Beside(Processes):
    """The first of two processes, the other of which can fold its teacher or cannot."""

    other: bool = True

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack([values, torch.full_like(values, self.other)])


@pytest.mark.parametrize(("processes", "norms"), [
    (ONE, 3), (Beside(0, 2, other=True), 3), (Beside(0, 2, other=False), 7),
])  # fmt: skip
def test_the_teacher_is_folded_if_all_processes_can_fold_it(processes, norms, teacher, runs):
    images = next(iter(DATA.batches("test", batch_size=20))).images
    teacher.train()
    with ExitStack() as closing:
        shown = teaching.teaching(teacher, STAGES, SOME, closing, processes)(images)
        assert runs == [norms]
        assert not any(module.training for module in teacher.modules())
    assert teacher.training
    teacher.eval()
    with torch.no_grad(), taps.Reader(teacher, STAGES) as read:
        logits, features = read(images)
    torch.testing.assert_close(shown.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shown.features, features, rtol=1e-4, atol=1e-4)


def test_the_student_is_that_of_the_unfolded_teacher_up_to_rounding(teacher, monkeypatch):
    def student() -> Tensor:
        made = distill(
            net(), DATA, teacher=teacher, losses=dict.fromkeys(TERMS, 0.1), epochs=1, batch_size=32,
            lr=0.01,
        ).student  # fmt: skip
        return torch.cat([value.flatten() for value in made.state_dict().values()])

    folded = student()
    monkeypatch.setattr(teaching, "folded", lambda *_: None)
    plain = student()
    assert not torch.equal(folded, plain)
    torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-4)


def test_networks_are_compiled_in_the_mode_of_their_steps(teacher, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    calls = []

    def pretended(run: compiling.Run) -> compiling.Run:
        def noted(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            calls.append(images)
            return run(images)

        return noted

    monkeypatch.setattr(torch, "compile", pretended)

    def student(*, compile: bool) -> nn.Module:  # noqa: A002 (the option's name)
        losses = {"ofd": 1.0}
        given = {"epochs": 1, "batch_size": 32, "lr": 0.01, "compile": compile}
        return distill(net(), DATA, teacher=teacher, losses=losses, **given).student

    made = student(compile=True)
    # Three steps of both networks, and the teacher once before the training.
    assert len(calls) == 7
    assert not any(module._forward_hooks for module in made.modules())
    expected = student(compile=False).state_dict()
    assert len(calls) == 7
    assert all(torch.equal(value, expected[name]) for name, value in made.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler
def test_a_compiled_student_is_equal_up_to_rounding(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def tiny() -> nn.Sequential:
        torch.manual_seed(0)
        parts = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()
        return nn.Sequential(*parts, nn.Linear(4 * 14 * 14, 10))

    def student(**given) -> dict[str, Tensor]:
        # The last batch is smaller.
        given = {"epochs": 1, "batch_size": 40, "lr": 0.01, "losses": {"ofd": 1.0}, **given}
        taps = {"student_taps": ["1"], "teacher_taps": ["1"]}
        return distill(tiny(), DATA, teacher=tiny().eval(), **taps, **given).student.state_dict()

    compiled, plain = student(compile=True), student()
    assert "cannot be compiled" not in capsys.readouterr().err
    (made,) = tmp_path.glob("robustkd-compiled-*")
    assert any((made / "inductor").iterdir())
    assert list(compiled) == list(plain)
    for name, value in compiled.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler
def test_a_detoxified_teacher_is_compiled(teacher, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    images = torch.rand(8, *DATA.image_shape).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), taps.read(teacher, STAGES) as features:
        teacher(images)
        masks = {name: FeatureMask(features[name].mean(0), cap=0.9) for name in STAGES}
    cleaned = DetoxifiedTeacher(teacher, masks).to(memory_format=torch.channels_last)
    with ExitStack() as closing:
        plain = teaching.teaching(cleaned, cleaned.taps, SOME, closing)(images)
    with ExitStack() as closing:
        teach = teaching.teaching(cleaned, cleaned.taps, SOME, closing, compiled=True)
        compiled = teach(images)
    assert not capsys.readouterr().err
    torch.testing.assert_close(compiled.logits, plain.logits, rtol=1e-3, atol=1e-4)
