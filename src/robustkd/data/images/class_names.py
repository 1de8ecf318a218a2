"""Reading the order of the classes from a file: a text of names, or JSON as libraries write it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from robustkd.core.errors import InputError
from robustkd.core.json_files import parse_foreign_json
from robustkd.core.names import as_found, composed
from robustkd.data.images.listing import shown
from robustkd.data.images.scan import (
    MOST_TEXT,
    check_same_classes,
    quoted_name,
    read_text,
    text_lines,
    unreadable,
)

# Each text matches in one way only, so that the time is linear in the length of a line.
_NUMBERED = re.compile(r"(\d{1,9})(?:[ \t]*[,:][ \t]*|[ \t]+)(\S.*)")
"""Line of a number and a name."""
_NUMBER = re.compile(r"\d{1,9}")
_MOST = 10**9
_INNER = ("id2label", "label2id", "class_to_idx", "label_names")
"""Keys of class names in JSON of transformers, torchvision and timm, in order of preference."""
_FORM = (
    "expected one name per line, in the order of the teacher's outputs; or a JSON list of names; "
    "or a JSON object of names and numbers"
)


class ClassNames(NamedTuple):
    """Classes of the data, and the outputs of the teacher that belong to them.

    Attributes:
        names: Names of the class folders, in the order of the teacher's outputs.
        outputs: Number of the teacher's output for each class, from 0; empty if the teacher has
            exactly these classes.
        of: Number of the teacher's outputs; None if it is not known.
    """

    names: tuple[str, ...]
    outputs: tuple[int, ...] = ()
    of: int | None = None


def read_class_names(path: Path, found: Sequence[str]) -> ClassNames:
    """Read the order of the classes from a text file with one name per line, or from JSON.

    If the teacher has more classes than the data, the lines are either the names of all its
    outputs in their order, or the number of an output, from 0, followed by the name of the class
    folder. JSON is a list of names, or an object of names and numbers such as ``class_to_idx`` and
    ``id2label``, also within the ``config.json`` of a model.

    Args:
        path: The file.
        found: Names of the class folders.

    Raises:
        InputError: If the file cannot be read, or its lines do not name all class folders.
    """
    lines, numbered = _read(path)
    lines = as_found(lines, found)
    if not numbered and set(lines) != set(found):
        numbered = _numbered(lines, path)
    numbered = dict(zip(numbered, as_found(numbered.values(), found), strict=True))
    if numbered and set(found) <= set(numbered.values()):
        outputs = tuple(output for output in sorted(numbered) if numbered[output] in set(found))
        return ClassNames(tuple(numbered[output] for output in outputs), outputs)
    if len(set(lines)) == len(lines) and set(found) < set(lines):
        outputs = tuple(place for place, name in enumerate(lines) if name in set(found))
        return ClassNames(tuple(lines[output] for output in outputs), outputs, len(lines))
    _check(path, tuple(numbered.values()) or lines, found)
    return ClassNames(tuple(lines))


def _check(path: Path, lines: Sequence[str], found: Sequence[str]) -> None:
    """Raise an error unless the lines are the names of the class folders."""
    met: set[str] = set()
    for name in lines:
        if name in met:
            raise InputError(f"{shown(path)} names the class {quoted_name(name)} twice; remove one")
        met.add(name)
    if lines and all(_before_number(line) in found for line in lines):
        raise InputError(
            f"{shown(path)} has the number behind the name in {quoted_name(lines[0])}; write it "
            "before the name, or leave it out"
        )
    advice = "" if met & set(found) else f": {_FORM}"
    check_same_classes(lines, found, it=shown(path), other="the folder", advice=advice)


def _before_number(line: str) -> str:
    """Return what a line has before a number at its end; empty without such a number."""
    line = line.rstrip()
    name = line.rstrip("0123456789")
    return "" if name == line else name.rstrip(" \t,:;=")


def _read(path: Path) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the names in their order, or, if not all outputs are named, the names by number."""
    try:
        text = read_text(path, most=MOST_TEXT)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if text.lstrip()[:1] not in ("[", "{"):
        return text_lines(text), {}
    try:
        found = parse_foreign_json(text)
    except (ValueError, RecursionError):
        return text_lines(text), {}  # names may begin with a bracket
    return _of_json(found, path)


def _of_json(found: object, path: Path) -> tuple[tuple[str, ...], dict[int, str]]:
    if isinstance(found, dict):
        inner = (found[key] for key in _INNER if isinstance(found.get(key), dict | list))
        found = next(inner, found)
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return tuple(found), {}
    pairs = _pairs(found) if isinstance(found, dict) else []
    if not pairs:
        raise InputError(f"{shown(path)} has JSON of another kind; {_FORM}")
    numbered = _once(pairs, path)
    if sorted(numbered) == list(range(len(numbered))):
        return tuple(numbered[number] for number in range(len(numbered))), {}
    return (), numbered


def _pairs(found: Mapping[str, object]) -> list[tuple[int, str]]:
    """Return numbers and names of an object from either to the other; empty for other objects."""
    if all(type(number) is int and 0 <= number < _MOST for number in found.values()):
        return [(number, name) for name, number in found.items() if isinstance(number, int)]
    if all(_NUMBER.fullmatch(key) and isinstance(name, str) for key, name in found.items()):
        return [(int(key), name) for key, name in found.items() if isinstance(name, str)]
    return []


def _numbered(lines: Sequence[str], path: Path) -> dict[int, str]:
    """Return the names by number if every line is a number and a name; otherwise nothing.

    Raises:
        InputError: If a number or a name occurs twice.
    """
    parts = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(part[1]), part[2]) for part in parts if part is not None]
    return _once(pairs, path) if len(pairs) == len(lines) else {}


def _once(pairs: Sequence[tuple[int, str]], path: Path) -> dict[int, str]:
    """Return the names by number.

    Raises:
        InputError: If a number or a name occurs twice.
    """
    numbers, names = zip(*pairs, strict=True) if pairs else ((), ())
    for kind, values in (("output", numbers), ("class", [composed(name) for name in names])):
        twice = next((value for value, n in Counter(values).items() if n > 1), None)
        if twice is not None:
            raise InputError(
                f"{shown(path)} has the {kind} {quoted_name(str(twice))} twice; remove one"
            )
    return dict(zip(numbers, names, strict=True))
