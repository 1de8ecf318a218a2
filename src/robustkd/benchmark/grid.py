"""A grid from one YAML file: settings x pairs x attacks x methods x seeds, as cells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

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
from robustkd.benchmark.attacked_teachers import Rehearsal, at_own_rates, check_settings
from robustkd.benchmark.cells import TEACHER, Cell, Setting, TeacherCell
from robustkd.benchmark.rehearsal import expected_method
from robustkd.core.errors import UsageError, printable
from robustkd.core.methods import METHODS, method_name
from robustkd.core.types import Split
from robustkd.core.validation import check_positive
from robustkd.core.yaml_files import read_yaml
from robustkd.teacher.defences.detoxification import check_search
from robustkd.training.config import check_training
from robustkd.training.precision import Precision

MOST_CELLS = 10_000
"""Of a grid; a larger one would take years, and its cells are listed in memory first."""

Names = Annotated[list[str], Field(min_length=1)]
Arguments = dict[str, StrictInt | StrictFloat | StrictStr]
Sizes = dict[Split, Annotated[StrictInt, Field(ge=1)]]
# What no preset decides, and no other key of the grid.
_TRAINING = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule", "temperature")
_WHOLE = ("epochs", "batch_size", "steps", "raises", "bisections")
_NUMBERS = ("lr", "momentum", "weight_decay", "temperature", "variance_weight", "growth")
_DETOXING = ("variance_weight", "growth", "raises", "bisections", "steps", "batch_size", "lr")


class Block(BaseModel):
    """Everything that is crossed, and what is the same for all of it.

    Attributes:
        data: Name of the data source to the images kept per split.
        pairs: Teacher's and student's architecture.
        attacks: Name to the attack's own arguments.
        methods: Names of presets; the teacher itself is always measured.
        seeds: Each is one repetition with a teacher of its own.
        target: Class that triggered images are sent to.
        augment: Whether everybody trains on randomly cropped and flipped images.
        precision: Of all training.
        threads: Of torch in each cell.
        teaching: Arguments of every attack, e.g. ``epochs``; without ``lr``, teacher and
            attacker's students learn at their architectures' own.
        training: Arguments of every student's training; without ``lr``, its architecture's own.
        detoxing: Arguments of detoxification that depend on the data's size alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[dict[str, Sizes], Field(min_length=1)]
    pairs: Annotated[list[tuple[str, str]], Field(min_length=1)]
    attacks: Annotated[dict[str, Arguments | None], Field(min_length=1)]
    methods: Names
    seeds: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    target: Annotated[StrictInt, Field(ge=0)] = 0
    augment: bool = False
    precision: Precision = "no"
    threads: Annotated[StrictInt, Field(ge=1, le=1024)] = 1
    teaching: Arguments = {}
    training: Arguments = {}
    detoxing: Arguments = {}

    @field_validator("pairs")
    @classmethod
    def _known_architectures(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for name in (name for pair in pairs for name in pair):
            models.check_name(name)
        return pairs

    @field_validator("data")
    @classmethod
    def _known_data(cls, sources: dict[str, Any]) -> dict[str, Any]:
        for name in sources:
            if name not in data.names():
                raise UsageError(f"unknown data {name!r}; expected {', '.join(data.names())}")
        return sources

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, precision: object) -> object:
        return "no" if precision is False else precision  # as YAML reads it

    @model_validator(mode="after")
    def _known_arguments(self) -> Block:
        for key, known in (("training", _TRAINING), ("detoxing", _DETOXING)):
            for name in getattr(self, key):
                if name not in known:
                    raise UsageError(f"{key} has no {name!r}; expected {', '.join(known)}")
        for key in ("teaching", "training", "detoxing"):
            _check_arguments(key, getattr(self, key))
        for name, own in self.attacks.items():
            _check_arguments(f"attacks.{name}", own or {})
            check_settings(name, {**self.teaching, **(own or {})})
        return self

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: list[str]) -> list[str]:
        return [method_name(name) for name in methods]

    def count(self) -> int:
        """Number of cells, counted without making any."""
        methods = 1 + len(self.methods)
        teachers = len(self.seeds) * len(self.pairs) * len(self.attacks) * len(self.data)
        return teachers * methods

    def cells(self) -> Iterator[Cell]:
        """Every cell; those of one teacher come one after the other, the teacher's own first."""
        # Seeds go round first, so that a grid that is stopped early is a smaller whole.
        for seed, pair, (name, own), (source, sizes) in product(
            self.seeds, self.pairs, self.attacks.items(), self.data.items()
        ):
            takes = ATTACKS[name].takes
            teacher = TeacherCell(
                Setting(source, sizes, self.augment, self.precision, self.threads, seed),
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
                training = _at_own_rate(self.training, pair[1])
                yield Cell(teacher, pair[1], method, training, self.detoxing)

    def _rehearsal(self, takes: Collection[str], student: str) -> Rehearsal | None:
        """What an attacker who knows us expects."""
        method = expected_method(takes)
        if method is None:
            return None
        detoxing = self.detoxing if METHODS[method].detox is not None else {}
        return Rehearsal(_at_own_rate(self.training, student), method, detoxing)


def _at_own_rate(arguments: Arguments, arch: str) -> Arguments:
    """The arguments, and the learning rate of the architecture where it is unusual and not given.

    So a cell's configuration says every rate but the usual one.
    """
    own = models.learning_rate(arch)
    return arguments if own == models.USUAL_RATE else {"lr": own, **arguments}


def _check_arguments(key: str, given: Arguments) -> None:
    """Refuse arguments of trainings that only a training would find wrong, hours later."""
    for name, value in given.items():
        if name in _WHOLE and not isinstance(value, int):
            raise UsageError(f"{key}.{name} is {value!r}; expected a whole number")
        if name in _NUMBERS and isinstance(value, str):
            raise UsageError(f"{key}.{name} is {value!r}; expected a number")
    its = _DETOXING if key == "detoxing" else _TRAINING
    known = {name: value for name, value in given.items() if name in its}
    if "temperature" in known:
        check_positive(**{f"{key}.temperature": known.pop("temperature")})  # type: ignore[arg-type]
    check = check_search if key == "detoxing" else check_training
    try:
        check(**known)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{key}.{error}") from error


def load_grid(path: Path) -> list[Cell]:
    """Read a grid.

    The file holds the keys of :class:`Block`, and under ``also`` a list of further blocks that
    say only what is different there.

    Raises:
        InputError: If the file cannot be read, is not YAML, or says a key twice.
        UsageError: If a key is unknown, a value is wrong, or two cells would be one line of the
            tables; a cell that stands there twice is run once.
    """
    content = read_yaml(path, anchors=True)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys such as 'attacks', not {type(content).__name__}")
    further = content.pop("also", [])
    if not isinstance(further, list) or not all(isinstance(block, dict) for block in further):
        raise UsageError(f"{path}: also: expected a list of blocks")
    blocks: list[Block] = []
    count = 0
    for where, own in [("", {}), *((f"also.{i}.", block) for i, block in enumerate(further))]:
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
        line = (setting.data, cell.pair, cell.teacher.attack, cell.method, setting.seed)
        if lines.setdefault(line, name) != name:
            words = ", ".join(map(str, line))
            raise UsageError(f"{path}: two different cells of {words}; put them into two grids")
    return list(cells.values())


def _block(path: Path, where: str, content: Mapping[str, Any]) -> Block:
    try:
        return Block.model_validate(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = printable(where + ".".join(map(str, first["loc"])))
        raise UsageError(f"{path}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
