"""Running one cell of a grid: make its teacher and its student, and measure one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import Backdoored, Teaching
from robustkd.attacks.parts.steps import train_teacher
from robustkd.benchmark.attacked_teachers import run_attack
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import (
    FORMAT,
    TEACHER,
    Cell,
    Setting,
    TeacherCell,
    defence_parts,
    digest,
    without_defence,
)
from robustkd.benchmark.rows import measured_runs
from robustkd.benchmark.trigger_files import load_triggers, save_triggers
from robustkd.core.devices import default_device
from robustkd.core.environment import environment
from robustkd.core.errors import InputError, RobustKDError
from robustkd.core.files import read_json, write_json
from robustkd.core.json_files import is_number
from robustkd.core.method_names import NetworkDefence
from robustkd.core.methods import find_method
from robustkd.core.types import DataSource, Split
from robustkd.data import InMemory
from robustkd.data.augment import named
from robustkd.pipeline.student import make_student
from robustkd.teacher.defences.cleaning import clean_network
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.precision import mixed


class NoTeacherError(RobustKDError):
    """A teacher could not be made; the message and the cause are those of the original error."""


class _Made(NamedTuple):
    """Facts about how a model in the store was made, and the wall time in seconds."""

    record: Mapping[str, object]
    seconds: float


def _made(folder: Path) -> _Made:
    path = folder / "made.json"
    content = read_json(path)
    record, seconds = content.get("record"), content.get("seconds")
    if not isinstance(record, dict) or not is_number(seconds):
        raise InputError(f"{path} is damaged; expected a record and a number of seconds")
    return _Made(record, seconds)


def run_cell(cell: Cell, store: Store) -> dict[str, object]:
    """Make the missing networks of a cell, and measure the result.

    Raises:
        NoTeacherError: If the teacher cannot be made, so that all its cells fail.

    Returns:
        ``run`` with the keys of ``results.json``, ``cell``, ``record`` and ``environment``; and
        ``others``, a list of such runs under further triggers, if the teacher has any.
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
        run, *others = measured_runs(
            model,
            _source(cell.teacher.setting),
            backdoored,
            names=cell.teacher.names,
            data=cell.teacher.setting.data,
            pair=cell.pair,
            method=cell.method,
            seed=cell.teacher.setting.seed,
            seconds=made.seconds,
        )
        made_with = environment()
    return {
        "run": asdict(run),
        **({"others": [asdict(other) for other in others]} if others else {}),
        "cell": cell.configuration(),
        "record": made.record,
        "environment": made_with,
    }


@dataclass(frozen=True)
class _SharedTeacher:
    """Builds the teacher of a cell; clean teachers are trained once for all attacks of a store.

    Attributes:
        cell: The teacher.
        store: Store of the clean teachers.
        waits: Seconds until each clean teacher was there.
    """

    cell: TeacherCell
    store: Store
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> nn.Module:
        """Build the teacher with fresh weights."""
        return _build(self.cell.arch, self.cell.setting, self.cell.setting.seed)

    def trained(self, data: DataSource, teaching: Teaching) -> nn.Module | None:
        """Return the teacher as trained on the clean images; None for all other images."""
        setting = self.cell.setting
        if data is not _source(setting):
            return None

        def make(folder: Path) -> None:
            models.save(train_teacher(self.__call__, data, teaching), folder / "model.safetensors")

        key = {"setting": setting.configuration(), "arch": self.cell.arch, **asdict(teaching)}
        started = time.perf_counter()
        entry = digest({"format": FORMAT, "kind": "clean teacher", **key})
        network = self.store.read(entry, make, _network)
        self.waits.append(time.perf_counter() - started)
        return network


def make_teacher(cell: TeacherCell, store: Store) -> tuple[Backdoored, float]:
    """Run the attack of a cell; return its result and the seconds that clean teachers took."""
    setting = cell.setting
    build = _SharedTeacher(cell, store)
    # Applied to the whole attack, which may train several networks.
    with mixed(setting.precision, default_device()):
        made = run_attack(
            cell.attack,
            lambda arch, seed: _build(arch, setting, seed),
            _source(setting),
            arch=cell.arch,
            surrogate=cell.surrogate or cell.arch,
            target=cell.target,
            seed=setting.seed,
            settings=cell.attacking,
            rehearsal=cell.rehearsal,
            build_teacher=build,
        )
    return made, sum(build.waits, 0.0)


def _teacher(cell: TeacherCell, store: Store) -> tuple[Backdoored, _Made]:
    def make(folder: Path) -> None:
        started = time.perf_counter()
        made, waited = make_teacher(cell, store)
        seconds = round(time.perf_counter() - started - waited, 2)
        models.save(made.teacher, folder / "model.safetensors", provenance={"attack": cell.attack})
        save_triggers(made, folder)
        write_json(folder / "made.json", {"record": made.record, "seconds": seconds})

    def read(folder: Path) -> tuple[Backdoored, _Made]:
        first, *others = load_triggers(folder, len(cell.names), _source(cell.setting))
        teacher, made = _network_made(folder)
        return Backdoored(teacher.eval(), *first, made.record, tuple(others)), made

    return store.read(digest(cell.configuration()), make, read)


def _student(cell: Cell, teacher: nn.Module, store: Store) -> tuple[nn.Module, _Made]:
    """Return the student of a cell; networks before and after a defence are shared by cells."""
    use = find_method(cell.method).defence
    if use is None:
        return _plain_student(cell, teacher, store)
    if use.on == "teacher":
        key = {"teacher": cell.teacher.configuration(), "kind": "cleaned teacher"}
        teacher, cleaned = _cleaned(cell, key, use, teacher, store)
        student, made = _plain_student(cell, teacher, store)
    else:
        # It does not depend on the defence, and other cells of the grid need it as well.
        student, made = _student(without_defence(cell), teacher, store)
        key = {"student": without_defence(cell).configuration(), "kind": "cleaned student"}
        student, cleaned = _cleaned(cell, key, use, student, store)
    record = {**made.record, "defence": cleaned.record}
    return student, _Made(record, round(made.seconds + cleaned.seconds, 2))


def _cleaned(
    cell: Cell,
    key: Mapping[str, object],
    use: NetworkDefence,
    network: nn.Module,
    store: Store,
) -> tuple[nn.Module, _Made]:
    """Return a network as cleaned by a defence, with its record and wall time."""
    setting = cell.teacher.setting

    def make(folder: Path) -> None:
        started = time.perf_counter()
        done = clean_network(
            network, _source(setting), use, seed=setting.seed, precision=setting.precision
        )
        seconds = round(time.perf_counter() - started, 2)
        models.save(done.network, folder / "model.safetensors", provenance={"defence": use.name})
        write_json(folder / "made.json", {"record": done.record, "seconds": seconds})

    configuration = {"format": FORMAT, **key, "defence": defence_parts(use)}
    return store.read(digest(configuration), make, _network_made)


def _network(folder: Path) -> nn.Module:
    return models.load(folder / "model.safetensors", links=False).to(default_device())


def _network_made(folder: Path) -> tuple[nn.Module, _Made]:
    return _network(folder), _made(folder)


def _plain_student(cell: Cell, teacher: nn.Module, store: Store) -> tuple[nn.Module, _Made]:
    """Return the student of a teacher that was cleaned before, if the method has a defence."""
    found, setting = find_method(cell.method), cell.teacher.setting
    how = replace(found, defence=None)
    training: TrainingOptions = {"precision": setting.precision, **cell.training}
    source = _source(setting)
    if how.augment is not None:
        source = replace(source, augmentation=named(how.augment, source.augmentation))

    def make(folder: Path) -> None:
        made = make_student(
            teacher,
            # Every method's student starts from the same weights.
            _build(cell.student, setting, setting.seed + 1),
            source,
            how,
            training=TrainingConfig(**training),
            detoxing=cell.detoxing,
            seed=setting.seed,
            label=cell.method,
        )
        models.save(
            made.student,
            folder / "model.safetensors",
            provenance={"method": cell.method, "seed": setting.seed},
        )
        seconds = round(made.seconds, 2)
        write_json(folder / "made.json", {"record": made.record, "seconds": seconds})

    configuration = cell.configuration()
    if not how.losses:
        # This student does not depend on the teacher, so it is shared by all attacks.
        configuration["teacher"] = {"format": FORMAT, **setting.configuration()}
        for name in cell.teacher.made_by():
            del configuration[name]
    return store.read(digest({**configuration, "kind": "student"}), make, _network_made)


@lru_cache(maxsize=2)
def _loaded(name: str, sizes: tuple[tuple[Split, int], ...], augment: bool) -> InMemory:
    kept = dict(sizes)
    loaded = data.load(
        name,
        train=kept.get("train"),
        validation=kept.get("validation"),
        test=kept.get("test"),
    )
    return loaded if augment else replace(loaded, augmentation=data.CropFlip())


def _source(setting: Setting) -> InMemory:
    return _loaded(
        setting.path or setting.data, tuple(sorted(setting.sizes.items())), setting.augment
    )


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
