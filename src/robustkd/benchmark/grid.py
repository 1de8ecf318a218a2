"""Reading of grids: settings x pairs x attacks x methods x seeds from one YAML file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from robustkd import data, models
from robustkd.attacks import ATTACKS
from robustkd.attacks.registry import check_accepts
from robustkd.benchmark.attacked_teachers import Rehearsal, at_own_rates, check_settings
from robustkd.benchmark.cells import TEACHER, Cell, Setting, TeacherCell
from robustkd.benchmark.folder_data import folder_facts
from robustkd.benchmark.grid_methods import method_in_grid
from robustkd.benchmark.grid_words import naming, refusal, shown
from robustkd.benchmark.rehearsal import expected_method
from robustkd.core.errors import UsageError
from robustkd.core.method_settings import BY_DATA, DetoxOptions, DetoxSettings
from robustkd.core.methods import find_method
from robustkd.core.targets import NEXT, Target
from robustkd.core.types import Split
from robustkd.core.validation import check_threads
from robustkd.core.yaml_files import read_yaml
from robustkd.training.config import Precision, TrainingOptions, check_training
from robustkd.training.recipes import usual_training, with_defaults

MOST_CELLS = 10_000
"""Largest number of cells of a grid, all of which are kept in memory."""

Names = Annotated[list[str], Field(min_length=1)]
Arguments = dict[str, StrictInt | StrictFloat | StrictStr]
Sizes = dict[Split, Annotated[StrictInt, Field(ge=1)]]
# Arguments that are set neither by a method nor by another key of the grid.
_TRAINING = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule", "temperature")
_WHOLE = ("epochs", "batch_size", "steps", "raises", "lowerings", "bisections")
_NUMBERS = ("lr", "momentum", "weight_decay", "temperature", "variance_weight", "growth")


class Block(BaseModel):
    """One block of a grid: lists whose combinations are run, and common settings.

    Attributes:
        data: Number of images per split, by name of the data source or path of a folder; nothing
            to use all images.
        pairs: Architectures of teacher and student.
        attacks: Arguments of the attacks, by name.
        methods: Names of methods, or mappings of a defence, see
            :func:`robustkd.benchmark.grid_methods.method_in_grid`; the teacher itself is always
            measured.
        expects: Name of the method that attackers who know the hardening expect; attackers who know
            the detoxification too expect ``both``.
        seeds: Each is one repetition with a teacher of its own.
        target: Target class of the attacks; ``next`` for the next class of each image.
        augment: If True, all networks are trained with the usual augmentation of the data; if
            False, on the images as they are.
        precision: Mixed precision of all trainings.
        threads: Number of threads of torch in each cell.
        teaching: Arguments of every attack, e.g. ``epochs``. Without ``lr``, teacher and surrogates
            use the defaults of their architectures.
        training: Arguments of every student's training. Without ``lr``, the default of the
            architecture is used.
        detoxing: Arguments of detoxification that depend on the size of the data only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[dict[str, Sizes], Field(min_length=1)]
    pairs: Annotated[list[tuple[str, str]], Field(min_length=1)]
    attacks: Annotated[dict[str, Arguments | None], Field(min_length=1)]
    methods: Names
    expects: str = "default"
    seeds: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    target: Target = 0
    augment: bool = False
    precision: Precision = "no"
    threads: StrictInt = 1
    teaching: Arguments = {}
    training: Arguments = {}
    detoxing: Arguments = {}

    @field_validator("pairs")
    @classmethod
    def _known_architectures(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for name in (name for pair in pairs for name in pair):
            models.check_name(name)
            if ":" in name:
                raise UsageError(f"pairs: {name!r} is code, which a grid cannot name")
        return pairs

    @field_validator("data", mode="before")
    @classmethod
    def _nothing_is_all(cls, sources: object) -> object:
        if not isinstance(sources, Mapping):
            return sources
        return {name: {} if sizes is None else sizes for name, sizes in sources.items()}

    @field_validator("data")
    @classmethod
    def _known_data(cls, sources: dict[str, object]) -> dict[str, object]:
        for name in sources:
            if name not in data.names() and not os.path.isabs(name):
                known = ", ".join(data.names())
                raise UsageError(f"unknown data {name!r}; expected {known}, or path: FOLDER")
        return sources

    @field_validator("target", mode="before")
    @classmethod
    def _class_or_next(cls, target: object) -> object:
        number = isinstance(target, int) and not isinstance(target, bool) and target >= 0
        if not number and target != NEXT:
            raise UsageError(
                f"target is {shown(target)}; expected the number of a class, or {NEXT} for the "
                "next class of each image"
            )
        return target

    @field_validator("threads")
    @classmethod
    def _possible_threads(cls, threads: int) -> int:
        check_threads(threads)
        return threads

    @field_validator("precision", mode="before")
    @classmethod
    def _false_is_no(cls, precision: object) -> object:
        return "no" if precision is False else precision

    @model_validator(mode="after")
    def _known_arguments(self) -> Block:
        for key, known in (("training", _TRAINING), ("detoxing", BY_DATA)):
            for name in getattr(self, key):
                if name not in known:
                    raise UsageError(f"{key} has no {name!r}; expected {', '.join(known)}")
        for key in ("teaching", "training", "detoxing"):
            _check_arguments(key, getattr(self, key))
        for name, own in self.attacks.items():
            _check_arguments(f"attacks.{name}", own or {})
            settings = {**self.teaching, **(own or {})}
            with naming(name):
                check_settings(name, settings)
                check_accepts(name, self.target, settings)
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _known_methods(cls, methods: object) -> object:
        if not isinstance(methods, list):
            return methods
        return [method_in_grid(each) for each in methods]

    @field_validator("expects")
    @classmethod
    def _known_expected(cls, name: str) -> str:
        return method_in_grid(name)

    def count(self) -> int:
        """Return the number of cells, without creating any."""
        methods = 1 + len(self.methods)
        teachers = len(self.seeds) * len(self.pairs) * len(self.attacks) * len(self.data)
        return teachers * methods

    def cells(self) -> Iterator[Cell]:
        """Yield every cell; those of one teacher are consecutive, with the teacher's own first."""
        # Seeds are the outermost loop, so that a grid that is stopped early is complete for some.
        for seed, pair, (name, own), (source, sizes) in product(
            self.seeds, self.pairs, self.attacks.items(), self.data.items()
        ):
            takes = ATTACKS[name].takes
            given = (sizes, self.augment, self.precision, self.threads, seed)
            folder = source if os.path.isabs(source) else None
            teacher = TeacherCell(
                Setting(folder_facts(folder).name if folder else source, *given, folder),
                pair[0],
                name,
                at_own_rates(
                    name, {**self.teaching, **(own or {})}, arch=pair[0], surrogate=pair[1]
                ),
                self.target,
                pair[1] if takes else None,
                self._rehearsal(takes, pair[1]),
            )
            for method in (TEACHER, *self.methods):
                training = _with_defaults_of(self.training, pair[1])
                yield Cell(teacher, pair[1], method, training, cast(DetoxOptions, self.detoxing))

    def _rehearsal(self, takes: Collection[str], student: str) -> Rehearsal | None:
        """Return the method that an adaptive attacker expects."""
        method = expected_method(takes, self.expects)
        if method is None:
            return None
        cleans = find_method(method).detox is not None
        detoxing = cast(DetoxOptions, self.detoxing if cleans else {})
        return Rehearsal(_with_defaults_of(self.training, student), method, detoxing)


def _with_defaults_of(arguments: Arguments, arch: str) -> TrainingOptions:
    """Add the default training settings of the architecture, unless they are the usual ones.

    The configuration of a cell thus contains all settings but the usual learning rate.
    """
    given = cast(TrainingOptions, arguments)
    usual = usual_training(arch, epochs=1) == {"lr": models.USUAL_RATE}
    return given if usual else with_defaults(given, arch)


def _check_arguments(key: str, given: Arguments) -> None:
    """Check the arguments of trainings, which would otherwise fail hours later."""
    for name, value in given.items():
        if name in _WHOLE and not isinstance(value, int):
            raise UsageError(f"{key}.{name} is {value!r}; expected a whole number")
        if name in _NUMBERS and isinstance(value, str):
            raise UsageError(f"{key}.{name} is {value!r}; expected a number")
    its = BY_DATA if key == "detoxing" else _TRAINING
    known: dict[str, Any] = {name: value for name, value in given.items() if name in its}
    try:
        if key == "detoxing":
            whole = {name: value for name, value in known.items() if name in _WHOLE}
            DetoxSettings(**{name: float(value) for name, value in known.items()} | whole)
        else:
            check_training(**known)
    except UsageError as error:
        raise UsageError(f"{key}.{error}") from error


def load_grid(path: Path) -> list[Cell]:
    """Read a grid.

    The file has the keys of :class:`Block`, and under ``also`` a list of further blocks with only
    the keys that differ.

    Raises:
        InputError: If the file cannot be read, is not YAML, or repeats a key.
        UsageError: If a key is unknown, a value is wrong, or two different cells would have the
            same line in the tables. Identical cells are run once.
    """
    content = read_yaml(path, anchors=True, exponents=True)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys such as 'attacks', not {type(content).__name__}")
    further = content.pop("also", [])
    if not isinstance(further, list) or not all(isinstance(block, dict) for block in further):
        raise UsageError(f"{path}: also: expected a list of blocks")
    blocks: list[Block] = []
    count = 0
    for where, own in [("", {}), *((f"also.{i}: ", block) for i, block in enumerate(further))]:
        blocks.append(_block(path, where, {**content, **own}))
        count += blocks[-1].count()
        if count > MOST_CELLS:
            raise UsageError(
                f"{path}: {count:,} cells or more; expected at most {MOST_CELLS:,}: split the grid"
            )
    cells = {cell.name: cell for block in blocks for cell in block.cells()}
    lines: dict[tuple[object, ...], str] = {}
    for name, cell in cells.items():
        setting = cell.teacher.setting
        for attack in cell.teacher.names:
            line = (setting.data, cell.pair, attack, cell.method, setting.seed)
            if lines.setdefault(line, name) != name:
                words = ", ".join(map(str, line))
                raise UsageError(
                    f"{path}: two different cells of {words}; put them into separate grids"
                )
    return list(cells.values())


def _located(grid: Path, content: Mapping[str, object]) -> dict[str, object]:
    """Return ``data`` with the path of a folder, which is relative to the grid, as its key."""
    given = content.get("data")
    if not isinstance(given, dict) or "path" not in given:
        return {}
    folder, sizes = given["path"], {name: size for name, size in given.items() if name != "path"}
    if not isinstance(folder, str) or not (grid.parent / folder).is_dir():
        raise UsageError(f"data.path is {folder!r}; expected a folder, relative to the grid's file")
    return {"data": {str((grid.parent / folder).resolve()): sizes}}


def _block(path: Path, where: str, content: Mapping[str, object]) -> Block:
    try:
        given = {**content, **_located(path, content)}
        return Block.model_validate(given)
    except UsageError as error:
        raise UsageError(f"{path}: {where}{error}") from error
    except ValidationError as error:
        said = refusal(error, given, Block.model_fields)
        raise UsageError(f"{path}: {where}{said}") from error
