"""Reader of ``results.json``, the measured results of a run or a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from robustkd.core.errors import InputError
from robustkd.core.files import write_json
from robustkd.core.folders import Folder
from robustkd.core.names import unfit

Scalar: TypeAlias = str | int | float | None

_NAMES = ("data", "pair", "attack", "method")
_MOST_LEVELS = 64


@dataclass(frozen=True, slots=True)
class ResultRow:
    """Results of one method on one setting with one seed; shares are fractions in [0, 1].

    Attributes:
        data: Name of the data set.
        pair: Architectures of teacher and student.
        attack: Name of the attack.
        method: Name of the method.
        seed: The seed.
        acc: Clean accuracy.
        asr: Attack success rate; None if it was not measured.
        ra: Robust accuracy; None if it was not measured.
        params: Number of parameters.
        seconds: Wall time in seconds.
        n_acc: Number of images from which ``acc`` was computed; None if unknown.
        n_asr: Number of images from which ``asr``, ``ra`` and ``base`` were computed; None if
            unknown.
        base: Share of clean images of other classes that are classified as the target class, or as
            the next class of each; None if it was not measured.
        attacks: Names in ``attack`` of all rows of this model, of which there is one for each
            trigger of the teacher; None in files of versions that did not record them.
    """

    data: str
    pair: str
    attack: str
    method: str
    seed: int
    acc: float
    asr: float | None
    ra: float | None
    params: int
    seconds: float
    n_acc: int | None = None
    n_asr: int | None = None
    base: float | None = None
    attacks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """Contents of ``results.json``.

    Attributes:
        runs: Measured results, one row per method, setting and seed.
        environment: Versions and hardware that the results depend on.
        config: Settings of the run or grid, in JSON values.
        records: Facts about how models were made, in JSON values.
    """

    runs: tuple[ResultRow, ...]
    environment: Mapping[str, Scalar]
    config: Mapping[str, object]
    records: Mapping[str, object]

    def content(self) -> dict[str, object]:
        """Return the content of the file, in JSON values."""
        return {
            "runs": [asdict(row) for row in self.runs],
            "environment": dict(self.environment),
            "config": dict(self.config),
            "records": dict(self.records),
        }

    def write(self, path: Path) -> None:
        """Write the results to a JSON file.

        Raises:
            WriteError: If the file cannot be written.
        """
        write_json(path, self.content())


@dataclass(frozen=True, slots=True)
class _Number:
    """Type and range of a number in a run; its smallest value is 0."""

    expected: str
    highest: float
    whole: bool = False
    nullable: bool = False
    required: bool = True


_SHARE = "a fraction in [0, 1]"
_COUNT = _Number(
    "a whole number of at least 0, or null", 2.0**53, True, nullable=True, required=False
)
_NUMBERS: Mapping[str, _Number] = {
    "seed": _Number("a whole number of at least 0", 2.0**64, whole=True),
    "acc": _Number(_SHARE, 1.0),
    "asr": _Number(f"{_SHARE}, or null", 1.0, nullable=True),
    "ra": _Number(f"{_SHARE}, or null", 1.0, nullable=True),
    "params": _Number("a whole number of at least 0", 2.0**53, whole=True),
    "seconds": _Number("a number of at least 0 seconds", 1e12),
    "n_acc": _COUNT,
    "n_asr": _COUNT,
    "base": _Number(f"{_SHARE}, or null", 1.0, nullable=True, required=False),
}


def read(folder: str | Path) -> Results:
    """Read and check ``results.json`` of a folder.

    Unknown keys of a run are ignored.

    Args:
        folder: The run folder.

    Returns:
        Contents of the file.

    Raises:
        InputError: If the file is missing or damaged. The message is one line that names the
            file, the key and the value.
    """
    folder = Path(folder)
    file = folder / "results.json"
    try:
        with Folder.at(file.parent) as opened:
            content = json.loads(opened.read(file.name))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a run folder") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error}); repeat the run") from error
    return read_content(file, content)


def read_content(file: Path, content: object) -> Results:
    """Check the content of ``results.json``.

    Args:
        file: The file, for messages.
        content: Its JSON values.

    Raises:
        InputError: If the content is damaged; see :func:`read`.
    """
    _refuse_deep(file, content)
    if not isinstance(content, dict):
        raise _wrong(file, "the file", content, "a JSON object")
    found = content.get("runs")
    if not isinstance(found, list) or not found:
        raise _wrong(file, "runs", found, "a list of at least one run")
    runs = tuple(read_run(file, f"runs[{i}]", run) for i, run in enumerate(found))
    _refuse_duplicates(file, runs)
    environment = read_environment(file, content)
    return Results(
        runs, environment, _mapping(file, content, "config"), _mapping(file, content, "records")
    )


def read_environment(file: Path, content: Mapping[str, object]) -> dict[str, Scalar]:
    """Return the environment in the content of a file of results; empty if there is none.

    Raises:
        InputError: If a value is neither text nor a number.
    """
    environment: dict[str, Scalar] = {}
    for key, value in _mapping(file, content, "environment").items():
        if not isinstance(value, str | int | float | None):
            raise _wrong(file, f"environment[{json.dumps(key)}]", value, "text or a number")
        environment[key] = value
    return environment


def read_run(file: Path, where: str, content: object) -> ResultRow:
    """Check one run of a file of results.

    Args:
        file: The file, for messages.
        where: Place of the run in the file, for messages.
        content: JSON values of the run.

    Raises:
        InputError: If a key is missing, or a value is wrong.
    """
    if not isinstance(content, dict):
        raise _wrong(file, where, content, "an object")
    known: dict[str, Any] = {key: _name(file, where, content, key) for key in _NAMES}
    for key, number in _NUMBERS.items():
        known[key] = _number(file, where, content, key, number)
    return ResultRow(**known, attacks=_attacks(file, where, content))


def _attacks(file: Path, where: str, run: Mapping[str, object]) -> tuple[str, ...] | None:
    names = run.get("attacks")
    if names is None:
        return None
    if not isinstance(names, list) or any(unfit(name) is not None for name in names):
        raise _wrong(file, f"{where}.attacks", names, "a list of printable names, or null")
    return tuple(names)


def _name(file: Path, where: str, run: Mapping[str, object], key: str) -> str:
    value = _required(file, where, run, key)
    expected = unfit(value)
    if expected is not None or not isinstance(value, str):
        raise _wrong(file, f"{where}.{key}", value, expected or "a printable name")
    return value


def _number(
    file: Path, where: str, run: Mapping[str, object], key: str, number: _Number
) -> int | float | None:
    value = _required(file, where, run, key) if number.required else run.get(key)
    if value is None and number.nullable:
        return None
    kinds = int if number.whole else int | float
    # True is an int, and NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= number.highest:
        raise _wrong(file, f"{where}.{key}", value, number.expected)
    return value if number.whole else float(value)


def _required(file: Path, where: str, run: Mapping[str, object], key: str) -> object:
    if key not in run:
        raise InputError(f"{file}: {where} has no {key!r}; every run needs it")
    return run[key]


def _refuse_deep(file: Path, content: object) -> None:
    """Raise an error for values that recursive functions could not format."""
    level: list[Any] = [[content]]
    for _ in range(_MOST_LEVELS):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return
    raise InputError(f"{file}: nested deeper than {_MOST_LEVELS} levels; repeat the run")


def _refuse_duplicates(file: Path, runs: tuple[ResultRow, ...]) -> None:
    first: dict[tuple[str, str, str, str, int], int] = {}
    for i, run in enumerate(runs):
        earlier = first.setdefault((run.data, run.pair, run.attack, run.method, run.seed), i)
        if earlier != i:
            raise InputError(
                f"{file}: runs[{i}] repeats runs[{earlier}] ({run.method!r} with seed {run.seed}); "
                "expected each seed once, since repeated seeds understate the standard deviation"
            )


def _mapping(file: Path, content: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise _wrong(file, key, value, "an object")
    return value


def _wrong(file: Path, key: str, value: object, expected: str) -> InputError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return InputError(f"{file}: {key} is {shown}; expected {expected}")
