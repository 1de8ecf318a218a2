"""A resumed training equals one that was never interrupted."""

from __future__ import annotations

import copy
import os
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, WriteError
from robustkd.data import CropFlip, InMemory, Labelled
from robustkd.models import Spec, build
from robustkd.student.distillation import distill
from robustkd.student.found import find_perturbations
from robustkd.student.hardening import UniversalPerturbations
from robustkd.training.checkpoint import State, load_state, save_state
from robustkd.training.hooks import Hooks
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.marks import slow_but


def split(n: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Labelled(images, torch.arange(n) % 3)


# Two and a half batches an epoch, in colour, so that memory formats matter.
DATA = InMemory(
    "noise", ("a", "b", "c"), split(20, 0), split(9, 1), split(9, 2), augmentation=CropFlip(1)
)
EPOCHS, STEPS = 3, 9


class Stopping:
    """A keeper that stores every state in a file, and stops the training at one of them."""

    def __init__(self, path: Path, stop: int | None) -> None:
        self.path, self.stop, self.kept = path, stop, 0

    def last(self) -> State | None:
        return load_state(self.path) if self.path.exists() else None

    def is_due(self) -> bool:
        return True

    def save(self, state: State) -> None:
        save_state(state, self.path)
        if self.kept == self.stop:
            raise KeyboardInterrupt
        self.kept += 1


def learner() -> Supervised:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
        )
    return Supervised(network)


class Halves(nn.Module):
    """The same network in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = learner().model
        self.head = self.body.pop(-1)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return Supervised(nn.Sequential(self.body, self.head))(images, labels)


def trained(
    keeper: Stopping | None,
    make: Callable[[], nn.Module] = learner,
    scores: Sequence[float] = (0.5, 0.7, 0.6),  # the second epoch is the best
    enough: Callable[[float], float] | None = None,
    **how: object,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    made = make()
    done = 0 if keeper is None or (last := keeper.last()) is None else len(last.values["records"])
    figures = iter(scores[done:])
    records = fit(
        made,
        DATA,
        epochs=EPOCHS,
        batch_size=8,
        seed=5,
        hooks=Hooks(validate=lambda: next(figures), enough=enough),
        keeper=keeper,
        **how,
    )
    return made.state_dict(), records


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop", range(STEPS + EPOCHS))
def test_a_training_resumes_from_any_state(stop, tmp_path):
    path = tmp_path / "state"
    weights, records = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(path, stop))
    torch.manual_seed(stop)  # another process has another global generator
    resumed, continued = trained(Stopping(path, None))
    assert same(weights, resumed)
    assert [list(record.items()) for record in continued] == [list(r.items()) for r in records]


def test_a_training_with_separate_learning_rates_resumes_from_any_state(tmp_path):
    how = {"make": Halves, "rates": {"head": 0.01}}
    weights, _ = trained(None, **how)
    assert not same(weights, trained(None, make=Halves)[0])
    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(tmp_path / "state", 4), **how)
    assert same(weights, trained(Stopping(tmp_path / "state", None), **how)[0])


@pytest.mark.parametrize("stop", range(STEPS + EPOCHS))
@pytest.mark.parametrize(("scores", "kept"), [([0.5, 0.7, 0.6], 3), ([0.7, 0.6, 0.5], 2)])
def test_a_training_with_a_sufficient_accuracy_resumes_from_any_state(scores, kept, stop, tmp_path):
    """In the second case, what was kept when it stops is not the best, and is enough only once."""
    how = {"scores": scores, "enough": lambda best: best - 0.125}
    weights, _ = trained(None, **how)
    assert same(weights, trained(None, scores=[float(epoch == kept) for epoch in (1, 2, 3)])[0])
    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(tmp_path / "state", stop), **how)
    assert same(weights, trained(Stopping(tmp_path / "state", None), **how)[0])


def test_a_state_of_other_networks_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(tmp_path / "state", 0))
    message = (
        "the stored state does not fit the networks, whose code has changed since; restore the "
        "code, or start a new run with --out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fit(Supervised(nn.Linear(8, 3)), DATA, epochs=1, keeper=Stopping(tmp_path / "state", None))


def damaged(state: State, key: str, value: object) -> State:
    if isinstance(value, Tensor):
        return State({**state.tensors, key: value}, state.values)
    if key in state.tensors:
        return State({k: v for k, v in state.tensors.items() if k != key}, state.values)
    return State(state.tensors, {**state.values, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("random.cpu", torch.zeros(3, dtype=torch.uint8)),
        ("random.nowhere", torch.zeros(3, dtype=torch.uint8)),
        ("began.order", torch.zeros(3, dtype=torch.uint8)),
        ("began.crops", torch.zeros(3)),
        ("began.crops", None),
        ("optimiser.99.momentum_buffer", torch.zeros(3)),
        ("optimiser.x.momentum_buffer", torch.zeros(3)),
        ("optimiser.0.momentum_buffer", torch.zeros(7, 7)),
        ("step", "many"),
        ("taken", -1),
        ("epoch", None),
        ("scalars", ["none"]),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(key, value, tmp_path):
    keeper = Stopping(tmp_path / "state", 2)
    with pytest.raises(KeyboardInterrupt):
        trained(keeper)
    save_state(damaged(load_state(keeper.path), key, value), keeper.path)
    with pytest.raises(InputError, match=r"^the stored state is damaged \(.*\); start a") as e:
        trained(Stopping(keeper.path, None))
    assert "\n" not in str(e.value)


def distilled(
    keeper: Stopping | None, until: dict[str, float] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    spec = Spec("wrn-10-1", 3, (3, 8, 8))
    more = {"families": ("warp", "generator"), "composed": True} if until else {}
    teacher = build(spec, seed=2).eval()
    if until:
        more["fixed"] = find_perturbations(teacher, DATA, ("tone", "flow"), steps=1)
    hardening = UniversalPerturbations(3, (3, 8, 8), fade=0.5, seed=4, **more)
    made = distill(
        build(spec, seed=1),
        DATA,
        teacher=teacher,
        losses={"ofd": 1.0, "kd": 1.0},
        until=until,
        hardening=hardening,
        epochs=2,
        batch_size=8,
        seed=3,
        keeper=keeper,
    )
    return made.student.state_dict(), hardening.state_dict()


@pytest.mark.parametrize("stop", slow_but((3,), (0, 1, 3, 5, 7)))
@pytest.mark.parametrize("until", [{}, {"ofd": 0.4, "kd": 0.7}])
def test_a_resumed_distillation_restores_connectors_and_perturbations(stop, until, tmp_path):
    weights, perturbations = distilled(None, until)
    with pytest.raises(KeyboardInterrupt):
        distilled(Stopping(tmp_path / "state", stop), until)
    resumed, hardened = distilled(Stopping(tmp_path / "state", None), until)
    assert same(weights, resumed)
    assert same(perturbations, hardened)


def test_storing_states_does_not_change_the_training(tmp_path):
    weights, records = trained(None)
    kept, same_records = trained(Stopping(tmp_path / "state", None))
    assert same(weights, kept)
    assert records == same_records


def test_the_state_of_perturbations_has_the_generator_and_the_step():
    made = UniversalPerturbations(3, (3, 8, 8), fade=1.0, seed=1)
    made.begin(10)
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    made.perturb(images, labels)
    made.advance()
    state = copy.deepcopy(made.state_dict())
    other = UniversalPerturbations(3, (3, 8, 8), fade=1.0, seed=2)
    other.begin(10)
    other.load_state_dict(state)
    for perturbations in (made, other):
        perturbations.advance()
    for one, two in zip(made.perturb(images, labels), other.perturb(images, labels), strict=True):
        assert torch.equal(one, two)


STATE = State({"learner.weight": torch.arange(6.0).reshape(2, 3)}, {"step": 7, "records": []})
NEXT = State({"learner.weight": torch.arange(6.0).reshape(2, 3) + 1}, {"step": 8, "records": []})


def test_a_state_is_saved_and_loaded(tmp_path):
    save_state(STATE, tmp_path / "state")
    found = load_state(tmp_path / "state")
    assert found.values == STATE.values
    assert torch.equal(found.part("learner")["weight"], STATE.tensors["learner.weight"])


def test_files_that_are_not_states_are_refused(tmp_path):
    from robustkd.models import save

    path = tmp_path / "model"
    save(build(Spec("wrn-10-1", 3, (3, 8, 8)), seed=0), path)
    message = f"{path} has no training state; expected a run's checkpoint"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_state(path)


class Died(BaseException):
    """Stands for SIGKILL: nothing that follows in the process happens."""


def test_a_kill_between_any_two_system_calls_leaves_a_complete_state(tmp_path, monkeypatch):
    path = tmp_path / "state"
    calls = [(os, name) for name in ("mkdir", "open", "fsync", "close", "rename", "rmdir")]
    left = [-1]

    def dying(real):
        def call(*arguments, **settings):
            if left[0] == 0:
                raise Died
            left[0] -= 1
            return real(*arguments, **settings)

        return call

    for module, name in calls:
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    seen = []
    for survived in range(100):
        left[0] = -1
        save_state(STATE, path)
        left[0] = survived
        try:
            save_state(NEXT, path)
            ended = True
        except Died:
            ended = False
        left[0] = -1
        seen.append(load_state(path).values["step"])
        if ended:
            break
    assert seen == sorted(seen)
    assert seen.count(7) > 6  # until it is renamed
    assert seen.count(8) > 3  # when what is left is removed, and the folder goes to the disk


def test_a_state_that_does_not_fit_leaves_the_old_one(tmp_path):
    """With a limit on file sizes, which fails the writer as a full disk does."""
    path = tmp_path / "state"
    save_state(STATE, path)
    large = State({"learner.weight": torch.zeros(100_000)}, NEXT.values)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(WriteError, match=f"^{re.escape(str(path))} cannot be written: .+$"):
            save_state(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(path).values == STATE.values
    assert [found.name for found in tmp_path.iterdir()] == ["state"]
