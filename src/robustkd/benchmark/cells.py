"""The cells of a grid: each a pure function of its configuration, whose hash is its name.

A configuration holds what is given and what presets say. Where a default or the code changes so
that results do, the ``revision`` of an attack, or ``_HARDENED`` or ``_FORMAT`` here, is raised.

Networks are kept in a store, so that the students of one teacher share it, and so that a student
that never meets a teacher is trained once for all attacks.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkd import data, models, runs
from robustkd.attacks import Backdoored, find, load_trigger, save_trigger
from robustkd.benchmark.measure import measured_run
from robustkd.benchmark.store import Store
from robustkd.benchmark.teachers import Rehearsal, run_attack
from robustkd.data import InMemory
from robustkd.errors import RobustKDError
from robustkd.inference import default_device
from robustkd.pipeline import make_student
from robustkd.precision import Precision, mixed
from robustkd.presets import preset
from robustkd.types import Split

TEACHER = "teacher"
"""The method of the cell that measures the teacher itself."""
_FORMAT = 1
"""Part of every hash: what the same configuration means changes with it."""
_HARDENED = 2
"""The same for students that are hardened, and for attackers who rehearse on one."""


class NoTeacherError(RobustKDError):
    """A teacher could not be made; why is its message, and its cause."""


@dataclass(frozen=True)
class Setting:
    """What all cells of a setting share.

    Attributes:
        data: Name of the data source.
        sizes: Images kept per split; a split that is not named is whole.
        augment: Whether everybody trains on randomly cropped and flipped images.
        precision: Of every network's training, attacker's and user's, as accelerate names it; the
            masks that an attacker rehearses learn in full precision.
        threads: Of torch, as the last bits of every figure depend on it.
        seed: Of everything random.
    """

    data: str
    sizes: Mapping[Split, int] = field(default_factory=dict)
    augment: bool = False
    precision: Precision = "no"
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TeacherCell:
    """A backdoored teacher.

    Attributes:
        setting: Where it is trained.
        arch: Its architecture.
        attack: Name of the attack.
        attacking: Arguments of the attack, those of every teacher's training among them.
        target: Class that triggered images shall get.
        surrogate: Architecture of the attacker's own students, for attacks that have any.
        rehearsal: What attacks that know us expect of the defender; None for all others.
    """

    setting: Setting
    arch: str
    attack: str
    attacking: Mapping[str, Any]
    target: int = 0
    surrogate: str | None = None
    rehearsal: Rehearsal | None = None

    def configuration(self) -> dict[str, Any]:
        """All that the teacher follows from, in JSON values."""
        return {"format": _FORMAT, **asdict(self), **self.made_by()}

    def made_by(self) -> dict[str, Any]:
        """What of today's code the teacher follows from: its attack's revision, and our method."""
        revision = find(self.attack).revision
        return {**({"revision": revision} if revision else {}), **self.rehearsed()}

    def rehearsed(self) -> dict[str, Any]:
        """What an attacker who knows us has met of us: other teachers come of another defence."""
        if self.rehearsal is None:
            return {}
        parts = _parts(self.rehearsal.method)
        if "train_surrogate" not in find(self.attack).takes:
            parts = {"detox": parts["detox"]}
        return {"rehearsed": parts}


@dataclass(frozen=True)
class Cell:
    """One method on one backdoored teacher.

    Attributes:
        teacher: What is distilled from.
        student: Architecture of the student.
        method: Name of a preset, or ``teacher`` to measure the teacher itself.
        training: Arguments of every student's training.
        detoxing: Arguments of detoxification that depend on the data's size alone.
    """

    teacher: TeacherCell
    student: str
    method: str
    training: Mapping[str, Any] = field(default_factory=dict)
    detoxing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> str:
        """Teacher and student in one word."""
        return f"{self.teacher.arch} to {self.student}"

    @property
    def name(self) -> str:
        """What it is, for people, and the hash of its configuration, for everything else."""
        words = (self.teacher.attack, self.method, f"seed-{self.teacher.setting.seed}")
        return f"{'.'.join(words)}.{digest(self.configuration())}"

    def configuration(self) -> dict[str, Any]:
        """All that the result follows from, in JSON values."""
        teacher = self.teacher.made_by()
        if self.method == TEACHER:
            own = asdict(replace(self, training={}, detoxing={}))
            return {"format": _FORMAT, **own, **teacher}
        # A method that cleans nothing is the same however long the others clean.
        cleans = preset(self.method).detox is not None
        relevant = self if cleans else replace(self, detoxing={})
        return {
            "format": _FORMAT,
            **asdict(relevant),
            **teacher,
            "preset": _parts(self.method),
        }


def _parts(method: str) -> dict[str, Any]:
    """What a preset does, in JSON values."""
    how = preset(method)
    hardening = None if how.hardening is None else {**how.hardening, "revision": _HARDENED}
    parts = {"losses": how.losses, "detox": how.detox, "hardening": hardening}
    return {name: None if part is None else dict(part) for name, part in parts.items()}


def digest(configuration: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the configuration's hash.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(configuration, sort_keys=True, default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def run_cell(cell: Cell, store: Store) -> dict[str, Any]:
    """Make what the cell needs and is not there yet, and measure it.

    Raises:
        NoTeacherError: If the teacher cannot be made, and so no cell of it; with the cause.

    Returns:
        ``run`` with the keys of ``results.json``, ``cell``, ``record`` and ``environment``.
    """
    with _threads(cell.teacher.setting.threads):
        try:
            backdoored, attacked = _teacher(cell.teacher, store)
        except Exception as error:
            raise NoTeacherError(str(error)) from error
        if cell.method == TEACHER:
            model, made = backdoored.teacher, attacked
        else:
            model, made = _student(cell, backdoored.teacher, store)
        run = measured_run(
            model,
            _source(cell.teacher.setting),
            backdoored,
            data=cell.teacher.setting.data,
            pair=cell.pair,
            attack=cell.teacher.attack,
            method=cell.method,
            seed=cell.teacher.setting.seed,
            seconds=made["seconds"],
        )
        environment = runs.environment()
    return {
        "run": run,
        "cell": cell.configuration(),
        "record": made["record"],
        "environment": environment,
    }


def make_teacher(cell: TeacherCell) -> Backdoored:
    """Run the attack of a cell."""
    setting = cell.setting
    # Around the whole attack, which trains several networks in its own ways.
    with mixed(setting.precision, default_device()):
        return run_attack(
            cell.attack,
            lambda arch, seed: _build(arch, setting, seed),
            _source(setting),
            arch=cell.arch,
            surrogate=cell.surrogate or cell.arch,
            target=cell.target,
            seed=setting.seed,
            settings=cell.attacking,
            rehearsal=cell.rehearsal,
        )


def _teacher(cell: TeacherCell, store: Store) -> tuple[Backdoored, dict[str, Any]]:
    def make(folder: Path) -> None:
        started = time.perf_counter()
        made = make_teacher(cell)
        seconds = round(time.perf_counter() - started, 2)
        models.save(made.teacher, folder / "model.safetensors", provenance={"attack": cell.attack})  # type: ignore[arg-type]
        save_trigger(made.trigger, made.target, folder / "trigger.safetensors")
        runs.write_json(folder / "made.json", {"record": made.record, "seconds": seconds})

    folder = store.fetch(digest(cell.configuration()), make)
    trigger, target = load_trigger(folder / "trigger.safetensors")
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    teacher = models.load(folder / "model.safetensors").to(default_device())
    return Backdoored(teacher.eval(), trigger, target, made["record"]), made


def _student(cell: Cell, teacher: nn.Module, store: Store) -> tuple[nn.Module, dict[str, Any]]:
    how, setting = preset(cell.method), cell.teacher.setting

    def make(folder: Path) -> None:
        made = make_student(
            teacher,
            # Every method's student starts from the same weights.
            _build(cell.student, setting, setting.seed + 1),
            _source(setting),
            how,
            training={"precision": setting.precision, **cell.training},
            detoxing=cell.detoxing,
            seed=setting.seed,
            label=cell.method,
        )
        models.save(
            made.student,  # type: ignore[arg-type]
            folder / "model.safetensors",
            provenance={"method": cell.method, "seed": setting.seed},
        )
        seconds = round(made.seconds, 2)
        runs.write_json(folder / "made.json", {"record": made.record, "seconds": seconds})

    configuration = cell.configuration()
    if not how.losses:
        # It never meets a teacher, so it is the same for all of them.
        configuration["teacher"] = {"format": _FORMAT, **asdict(setting)}
        for name in cell.teacher.made_by():
            del configuration[name]
    folder = store.fetch(digest({**configuration, "kind": "student"}), make)
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    return models.load(folder / "model.safetensors").to(default_device()), made


@lru_cache(maxsize=2)
def _loaded(name: str, sizes: tuple[tuple[Split, int], ...], augment: bool) -> InMemory:
    loaded = data.load(name, **dict(sizes))  # type: ignore[arg-type]
    return loaded if augment else replace(loaded, augmentation=data.CropFlip())


def _source(setting: Setting) -> InMemory:
    return _loaded(setting.data, tuple(sorted(setting.sizes.items())), setting.augment)


def _build(arch: str, setting: Setting, seed: int) -> models.Classifier:
    return models.builder(_source(setting))(arch, seed)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
