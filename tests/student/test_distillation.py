"""Distillation: reproducibility, losses, selection of the epoch, and errors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from robustkd import data, models
from robustkd.core.errors import TrainingError, UsageError
from robustkd.models.features.collect import features_on
from robustkd.student import distillation, learner
from robustkd.student.distillation import Distilled, distill
from robustkd.student.hardening import UniversalPerturbations, withstand
from robustkd.student.objective import DistillationObjective, EarlyStop
from robustkd.student.pair import margins
from robustkd.student.terms import NEEDS_FEATURES, TERMS, Outputs
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask
from robustkd.training.inference import accuracy_on
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.losses import measured_margin
from robustkd.training.metrics import Proportion
from tests.modes import MODES
from tests.unlabelled import Unlabelled

DATA = data.load("digits", train=96, validation=40, test=20)
STAGES = tuple(f"network.groups.{stage}" for stage in range(3))


def net(seed: int = 0, arch: str = "wrn-10-1") -> models.Classifier:
    return models.build(models.Spec(arch, 10, DATA.image_shape), seed=seed)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    trained = net(seed=1)
    fit(Supervised(trained), DATA, epochs=2, batch_size=32)
    return trained.eval()


def short(teacher: nn.Module | None, **changes) -> Distilled:
    """One epoch of three steps."""
    student = changes.pop("student", None) or net()
    return distill(student, DATA, teacher=teacher, **({"epochs": 1, "batch_size": 32} | changes))


def digest(found: Distilled, folder: Path) -> str:
    models.save(found.student, folder / "student.safetensors")
    return hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()


def perturbations(seed: int = 0) -> UniversalPerturbations:
    return UniversalPerturbations(10, DATA.image_shape, seed=seed)


# Reproducible.


@pytest.mark.parametrize("hardened", [False, True])
def test_same_seed_same_student_byte_for_byte(hardened, teacher, tmp_path):
    def student(seed: int) -> str:
        hardening = perturbations(seed) if hardened else None
        found = short(teacher, losses=dict.fromkeys(TERMS, 1.0), seed=seed, hardening=hardening)
        return digest(found, tmp_path)

    one = student(3)
    torch.manual_seed(12345)
    assert student(3) == one
    assert student(4) != one


def test_gradients_of_the_caller_have_no_effect(teacher, tmp_path):
    expected = digest(short(teacher, losses=dict.fromkeys(TERMS, 1.0)), tmp_path)
    student = net()
    for network in (student, teacher):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
    found = short(teacher, student=student, losses=dict.fromkeys(TERMS, 1.0))
    assert digest(found, tmp_path) == expected
    teacher.zero_grad()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_the_caller_have_no_effect(mode, teacher, tmp_path):
    losses, families = dict.fromkeys(TERMS, 1.0), ("generator",)

    def student(network: nn.Module) -> str:
        hardening = UniversalPerturbations(10, DATA.image_shape, families=families)
        found = short(teacher, student=network, losses=losses, hardening=hardening)
        return digest(found, tmp_path)

    expected, network = student(net()), net()
    with mode():
        assert student(network) == expected


def test_an_interrupted_distillation_begins_anew(teacher, tmp_path, monkeypatch):
    expected = digest(short(teacher, hardening=perturbations()), tmp_path)
    student, first = net(), net().state_dict()

    def interrupt(self: UniversalPerturbations, _processes: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(UniversalPerturbations, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            short(teacher, student=student, hardening=perturbations())
    student.load_state_dict(first)
    found = short(teacher, student=student, hardening=perturbations())
    assert digest(found, tmp_path) == expected


def test_the_global_random_generator_is_not_used(teacher):
    before = torch.get_rng_state()
    short(teacher, hardening=perturbations())
    assert torch.equal(torch.get_rng_state(), before)


# The teacher.


def test_the_teacher_is_not_changed():
    teacher = net(seed=1)
    teacher.network.bn.eval()
    teacher.network.stem.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    flags = [parameter.requires_grad for parameter in teacher.parameters()]
    short(teacher, losses=dict.fromkeys(TERMS, 1.0), hardening=perturbations())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [module.training for module in teacher.modules()] == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == flags
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_teacher_in_training_mode_teaches_as_in_eval_mode(teacher, tmp_path):
    """Its BatchNorm reads the running statistics, whatever mode it is given in."""
    frozen = digest(short(teacher), tmp_path)
    assert digest(short(teacher.train()), tmp_path) == frozen
    teacher.eval()


def test_a_detoxified_teacher_gives_its_cleaned_features(tmp_path):
    """Full masks hide everything of the network inside, so it must not matter which it is."""
    shapes = ((16, 16, 16), (32, 8, 8), (64, 4, 4))
    random = torch.Generator().manual_seed(0)
    patterns = [torch.randn(shape, generator=random) for shape in shapes]

    def hidden(seed: int) -> DetoxifiedTeacher:
        masks = [FeatureMask(pattern, cap=1.0) for pattern in patterns]
        for mask in masks:
            nn.init.ones_(mask.mask)
        return DetoxifiedTeacher(net(seed), dict(zip(STAGES, masks, strict=True)))

    def student(seed: int, **taps) -> str:
        return digest(short(hidden(seed), losses={"fitnet": 1.0}, **taps), tmp_path)

    assert student(1) == student(2)
    raw = [f"teacher.{stage}.0.conv1" for stage in STAGES]
    assert student(1, teacher_taps=raw) != student(2, teacher_taps=raw)


# The student.


def test_the_given_student_is_trained_and_returned_in_eval_mode(teacher):
    student, fresh = net(), net()
    keys = list(student.state_dict())
    found = short(teacher, student=student, hardening=perturbations())
    assert found.student is student
    assert not any(module.training for module in student.modules())
    assert list(student.state_dict()) == keys
    assert not any(module._forward_hooks for module in student.modules())
    for new, old in zip(student.parameters(), fresh.parameters(), strict=True):
        assert not torch.equal(new, old)
    assert found.seconds > 0


def test_frozen_weights_of_a_student_stay(teacher):
    student = net()
    student.network.stem.weight.requires_grad_(False)
    before = student.network.stem.weight.clone()
    short(teacher, student=student)
    assert torch.equal(student.network.stem.weight, before)


@pytest.mark.parametrize("names", [*([name] for name in TERMS), list(TERMS)], ids=" ".join)
def test_every_loss_alone_and_all_together(names, teacher):
    found = short(teacher, losses=dict.fromkeys(names, 0.5))
    (record,) = found.epochs
    assert set(record) == {"epoch", "loss", "acc", "ce", "lr", "validation", *names}
    assert all(math.isfinite(value) for value in record.values())
    assert record["loss"] == pytest.approx(sum(record[name] for name in ("ce", *names)), rel=1e-4)
    assert all(record[name] > 0 for name in names)


def test_a_weight_scales_what_it_weighs(teacher):
    """Over a single step both students are the same when the loss is measured."""
    once, twice = (
        short(teacher, losses={"kd": weight}, batch_size=96).epochs[0] for weight in (1.0, 2.0)
    )
    assert twice["kd"] == pytest.approx(2 * once["kd"], rel=1e-5)
    assert twice["ce"] == once["ce"]


def test_distillation_brings_the_student_to_the_teacher(teacher):
    epochs = short(teacher, losses={"kd": 1.0}, epochs=4).epochs
    assert epochs[-1]["kd"] < 0.7 * epochs[0]["kd"]


@pytest.mark.parametrize("hardening", [None, perturbations()], ids=["plain", "hardened"])
def test_without_a_teacher_the_loss_is_cross_entropy(hardening):
    found = short(None, losses={}, hardening=hardening)
    expected = {"epoch", "loss", "acc", "ce", "lr", "validation"} | (
        {"harden"} if hardening else set()
    )
    assert set(found.epochs[0]) == expected


def test_without_a_teacher_distillation_losses_are_ignored(tmp_path):
    assert digest(short(None), tmp_path) == digest(short(None, losses={}), tmp_path)


def test_hardening_moves_all_of_its_perturbations(teacher):
    hardening = perturbations()
    before = [value.clone() for value in hardening.buffers()]
    record = short(teacher, hardening=hardening).epochs[0]
    assert record["harden"] > 0
    for now, then in zip(hardening.buffers(), before, strict=True):
        assert not torch.equal(now, then)


@pytest.mark.parametrize(("distilled", "compared"), [(True, 48), (False, 32)])
def test_distilled_copies_are_compared_with_the_teachers_outputs_for_clean_images(
    distilled, compared, teacher, monkeypatch
):
    seen: list[tuple[Outputs, Outputs]] = []
    measured = DistillationObjective.forward

    def spy(self, student, taught, *shares):
        seen.append((student, taught))
        return measured(self, student, taught, *shares)

    monkeypatch.setattr(DistillationObjective, "forward", spy)
    hardening = UniversalPerturbations(10, DATA.image_shape, share=0.5, distilled=distilled)
    short(teacher, hardening=hardening)
    assert len(seen) == 1 + 3
    for student, taught in seen[1:]:
        for shown, view in zip(
            (student.logits, *student.features), (taught.logits, *taught.features), strict=True
        ):
            assert len(shown) == len(view) == compared
            copies = compared - 32
            assert torch.equal(view[32:], view[:copies])
            assert not distilled or not torch.allclose(shown[32:], shown[:copies])


@pytest.mark.parametrize("recovered", [True, False])
def test_only_recovered_copies_are_trained_towards_their_label(recovered, teacher, monkeypatch):
    asked: list[bool] = []

    def spy(*logits_and_labels, recovered):
        asked.append(recovered)
        return withstand(*logits_and_labels, recovered=recovered)

    monkeypatch.setattr(learner, "withstand", spy)
    short(teacher, hardening=UniversalPerturbations(10, DATA.image_shape, recovered=recovered))
    assert asked == [recovered] * 3


@pytest.mark.parametrize("loss", ["kd", "ofd"])
@pytest.mark.parametrize("hardening", [None, perturbations()], ids=["plain", "hardened"])
@pytest.mark.slow
def test_without_labels_the_student_learns_from_the_teacher(loss, hardening, teacher):
    found = distill(
        net(),
        Unlabelled(DATA),
        teacher=teacher,
        losses={loss: 1.0},
        epochs=4,
        batch_size=32,
        hardening=hardening,
    )
    first, last = found.epochs[0], found.epochs[-1]
    assert first["ce"] == last["ce"] == 0
    assert ("harden" in last) == (hardening is not None)
    if hardening is None:
        assert last[loss] < 0.8 * first[loss]


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_kept(teacher, monkeypatch, tmp_path):
    """A step schedule is flat over its first half: epoch 1 of 4 is epoch 1 of 2."""

    def kept(figures: list[float], epochs: int) -> str:
        remaining = iter(figures)
        monkeypatch.setattr(
            distillation, "accuracy_on", lambda *_: Proportion(int(100 * next(remaining)), 100)
        )
        return digest(short(teacher, epochs=epochs, schedule="step"), tmp_path)

    first = kept([0.9, 0.5, 0.4, 0.3], 4)
    assert kept([0.9, 0.1], 2) == first
    assert kept([0.1, 0.9], 2) != first
    assert kept([0.5, 0.5], 2) == kept([0.1, 0.9], 2)


@pytest.mark.parametrize(
    ("hits", "hardened", "kept"),
    [
        ([30, 40, 37], True, 3),  # Wilson's interval of 40 in 40 begins at 36.5
        ([30, 40, 36], True, 2),
        ([20, 30, 24], True, 3),  # and that of 30 in 40 at 23.9
        ([20, 30, 23], True, 2),
        ([20, 30, 29], False, 2),
    ],
)
def test_a_hardened_student_keeps_the_last_epoch_unless_accuracy_falls(
    hits, hardened, kept, teacher, monkeypatch
):
    seen, left = [], iter(hits)

    def count(student: nn.Module, *_: object) -> Proportion:
        seen.append(student.state_dict()["network.head.weight"].clone())
        return Proportion(next(left), 40)

    monkeypatch.setattr(distillation, "accuracy_on", count)
    how = {"hardening": perturbations()} if hardened else {}
    found = short(teacher, epochs=3, **how)
    assert torch.equal(found.student.state_dict()["network.head.weight"], seen[kept - 1])
    assert found.kept == kept


def test_selection_looks_at_validation_images(teacher):
    found = short(teacher, epochs=3)
    figures = [record["validation"] for record in found.epochs]
    assert accuracy_on(found.student, DATA, "validation").value == max(figures)


def test_the_log_may_be_a_text(teacher, tmp_path):
    log = tmp_path / "epochs.jsonl"
    made = short(teacher, log=str(log))
    assert [json.loads(line) for line in log.read_text().splitlines()] == made.epochs


@pytest.mark.parametrize("name", [".", "missing/epochs.jsonl"])
def test_a_log_that_cannot_be_written_is_refused_before_the_training(name, tmp_path):
    with pytest.raises(UsageError, match=r"^log is .*; expected a file in a folder that exists$"):
        short(None, log=tmp_path / name)


def test_one_line_per_epoch_is_logged(teacher, tmp_path):
    log = tmp_path / "metrics.jsonl"
    found = short(teacher, epochs=2, log=log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == found.epochs
    assert [record["epoch"] for record in found.epochs] == [1.0, 2.0]


def test_half_precision_runs_and_full_precision_after_it(teacher, tmp_path):
    full = digest(short(teacher), tmp_path)
    half = short(
        teacher, losses=dict.fromkeys(TERMS, 1.0), precision="bf16", hardening=perturbations()
    )
    assert all(math.isfinite(value) for value in half.epochs[0].values())
    assert all(parameter.dtype == torch.float32 for parameter in half.student.parameters())
    assert digest(half, tmp_path) != full
    assert digest(short(teacher), tmp_path) == full


# Taps.


def test_the_last_stages_of_both_are_paired(teacher, tmp_path):
    alone = digest(short(teacher, student_taps=STAGES[-1:], teacher_taps=STAGES[-1:]), tmp_path)
    assert digest(short(teacher, student_taps=STAGES, teacher_taps=STAGES[-1:]), tmp_path) == alone
    first = short(teacher, student_taps=STAGES[-1:], teacher_taps=STAGES[:1])
    assert digest(first, tmp_path) != alone


def test_connectors_fit_wider_teachers_and_other_sizes():
    found = short(net(1, "wrn-10-2"), teacher_taps=STAGES[:2], student_taps=STAGES[1:])
    assert math.isfinite(found.epochs[0]["ofd"])


# Refusals.


@pytest.mark.parametrize("name", sorted(NEEDS_FEATURES))
def test_a_loss_that_does_nothing_is_refused(name, teacher):
    """Ahead of the tap there is no weight to learn: OFD's connector alone would."""
    message = (
        f"distillation loss {name!r} gives the student no gradient; "
        "check the taps of teacher and student"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        short(
            teacher,
            losses={"kd": 1.0, name: 1.0},
            student_taps=["normalise"],
            teacher_taps=["normalise"],
        )


def test_a_loss_that_is_not_finite_stops_the_training(teacher):
    message = r"^the training's \w+ is (nan|inf) after \d+ steps with a learning rate of 1e\+30; "
    with pytest.raises(TrainingError, match=message):
        short(teacher, lr=1e30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {}}, "there is a teacher but no distillation loss; name one, e.g. 'ofd'"),
        (
            {"losses": {"odf": 1.0}},
            f"unknown distillation loss 'odf'; expected {', '.join(TERMS)}",
        ),
        (
            {"losses": {"kd": -1.0}},
            "weight of distillation loss 'kd' is -1.0; expected more than 0",
        ),
        (
            {"losses": {"kd": 1.0}, "temperature": 0.0},
            "temperature is 0.0; expected more than 0",
        ),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1; expected at least 2"),
        ({"lr": math.nan}, "lr is nan; expected more than 0"),
        (
            {"teacher_taps": ["network.grops"]},
            "no module 'network.grops' in Classifier; did you mean 'network.groups'?",
        ),
        (
            {"student_taps": ["network.head"]},
            "module 'network.head' gives features of shape (10,); expected channels x height x "
            "width or tokens x channels: tap a stage",
        ),
        (
            {"hardening": UniversalPerturbations(7, (1, 8, 8))},
            "hardening is for classes and images of shape (7, 1, 8, 8); the data has "
            "(10, 1, 16, 16)",
        ),
    ],
)
def test_error_messages(changes, message, teacher):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        short(teacher, **changes)


@pytest.mark.parametrize(
    "given", [{"losses": {"kd": 1.0}}, {"until": {"ofd": 0.5}}, {"student_taps": ["nope"]}]
)
def test_what_needs_a_teacher_is_refused_without_one(given):
    with pytest.raises(UsageError, match=r"^(losses, until and taps are given without|until)"):
        short(None, **given)


# The teacher stops early.


def test_the_weight_of_a_loss_falls_in_the_second_half_of_its_share():
    stop = EarlyStop({"ofd": 0.5}, steps=8)
    shares = []
    for _ in range(8):
        shares.append(stop.share("ofd"))
        assert stop.share("kd") == 1
        stop.advance()
    assert shares == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("hardened", [False, True])
def test_the_teacher_runs_before_the_student_whose_activations_are_kept(hardened, teacher):
    order, student = [], net()
    hooks = [
        network.register_forward_pre_hook(lambda _module, _inputs, name=name: order.append(name))
        for name, network in (("teacher", teacher), ("student", student))
    ]
    try:
        short(teacher, student=student, hardening=perturbations() if hardened else None)
    finally:
        for hook in hooks:
            hook.remove()
    *steps, validation = order[-7:]
    assert steps == ["teacher", "student"] * 3
    assert validation == "student"


def test_margins_are_those_of_all_features_to_the_last_bit(teacher):
    names = [f"{stage}.0.conv1" for stage in STAGES]
    stages = features_on(teacher, names, DATA, batch_size=64, batches=16)
    expected = [measured_margin(stage) for stage in stages]
    found = margins(teacher, names, DATA)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_when_no_loss_is_left_the_teacher_is_not_run_again(teacher):
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    try:
        found = short(teacher, losses={"kd": 1.0}, until={"kd": 0.5}, epochs=4)
    finally:
        handle.remove()
    # The first six of 12 steps; before the training, four calls look at its outputs, and three
    # belong to the folding of its BatchNorm layers.
    assert len(calls) == 6 + 4 + 3
    assert [record["kd"] > 0 for record in found.epochs] == [True, True, False, False]


def test_one_loss_can_stop_before_another(teacher):
    found = short(teacher, losses={"kd": 1.0, "ofd": 1.0}, until={"ofd": 0.5}, epochs=4)
    assert [record["ofd"] > 0 for record in found.epochs] == [True, True, False, False]
    assert all(record["kd"] > 0 for record in found.epochs)


def test_a_loss_that_has_stopped_is_not_computed(teacher, monkeypatch):
    calls = []
    forward = TERMS["ofd"].forward
    monkeypatch.setattr(TERMS["ofd"], "forward", lambda *given: calls.append(1) or forward(*given))
    short(teacher, losses={"kd": 1.0, "ofd": 1.0}, until={"ofd": 0.5}, epochs=4)
    # The first six of 12 steps; one more call checks the gradient before the training.
    assert len(calls) == 6 + 1


def test_a_share_of_one_is_distillation_with_falling_weights_to_the_end():
    stop = EarlyStop({"kd": 1.0}, steps=4)
    shares = []
    for _ in range(4):
        shares.append(stop.share("kd"))
        stop.advance()
    assert shares == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("until", [0.0, -1.0, 1.5])
def test_a_share_out_of_range_is_refused(until, teacher):
    message = f"until of loss 'kd' is {until}; expected above 0 and at most 1"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        short(teacher, losses={"kd": 1.0}, until={"kd": until})


def test_a_stop_of_a_loss_that_is_not_used_is_refused(teacher):
    with pytest.raises(UsageError, match=r"^until has loss 'ofd'; the losses in use are: kd$"):
        short(teacher, losses={"kd": 1.0}, until={"ofd": 0.5})


@pytest.mark.parametrize("loss", ["ofd", "kd"])
def test_features_of_a_teacher_for_other_classes_can_be_distilled_and_its_logits_cannot(loss):
    teacher = models.build(models.Spec("wrn-10-1", 7, DATA.image_shape), seed=1)
    if loss == "ofd":
        assert short(teacher, losses={loss: 1.0}).epochs
        return
    message = r"^the teacher maps 2 images to a tensor of shape \(2, 7\); expected logits of shape"
    with pytest.raises(UsageError, match=message):
        short(teacher, losses={loss: 1.0})
