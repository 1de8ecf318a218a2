"""Messages for values in a grid that pydantic refuses: the value, and what is expected instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robustkd.core.errors import UsageError, printable
from robustkd.core.names import nearest

if TYPE_CHECKING:
    from pydantic import ValidationError

_MOST_SHOWN = 60
_ARGUMENTS = "numbers and names, such as {epochs: 10}"
# What is expected under a key of a grid, and under a key or in a list below it.
_FORMS = {
    "data": (
        "data sets with numbers of images, such as {digits: {train: 400}}",
        "numbers of images, such as {train: 400}, or nothing to use all",
    ),
    "pairs": (
        "a list of at least one pair, such as [[wrn-16-2, wrn-10-1]]",
        "a teacher and a student, such as [wrn-16-2, wrn-10-1]",
    ),
    "attacks": (
        "at least one attack with its arguments, such as {badnets: {}}",
        "arguments of the attack, such as {epochs: 10}, or nothing",
    ),
    "methods": ("a list of at least one method, such as [mix, default]",),
    "seeds": ("a list of at least one seed, such as [0, 1, 2]",),
    "teaching": (_ARGUMENTS,),
    "training": (_ARGUMENTS,),
    "detoxing": (_ARGUMENTS,),
    "losses": ("weights of losses by name, such as {kd: 1, ofd: 0.3}",),
}
_OF_FORM = ("list_type", "tuple_type", "dict_type", "too_short", "too_long", "missing")
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a name",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
# Types of which several may be accepted; a whole number is a number.
_EITHER = {"int": "a number", "float": "a number", "str": "a name"}
_LIMITS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def refusal(error: ValidationError, content: object, known: Iterable[str]) -> str:
    """Return a message for the first error of a part of a grid.

    Args:
        error: Error of pydantic.
        content: The part, as it was validated.
        known: Keys that it may have.

    >>> from pydantic import TypeAdapter, ValidationError
    >>> given = {"seeds": 3}
    >>> try:
    ...     _ = TypeAdapter(dict[str, list[int]]).validate_python(given)
    ... except ValidationError as error:
    ...     refusal(error, given, ["seeds"])
    'seeds is 3; expected a list of at least one seed, such as [0, 1, 2]'
    """
    errors = error.errors(include_url=False)
    first: dict[str, Any] = {**errors[0]}
    kind, limits, place = first["type"], first.get("ctx", {}), first["loc"]
    path = _path(place, content)
    if kind == "extra_forbidden":
        return f"unknown key {shown(place[-1])}; {nearest(str(place[-1]), known)}"
    if kind == "invalid_key":
        key = first["input"]
        problem = "a key is empty" if key is None else f"{_key(key)} is not a string"
        return f"{problem}; expected {', '.join(known)}"
    if place[-1] == "[key]":
        # The key itself comes before; pydantic writes it as a text.
        where, expected = _dotted(place[:-2]), limits.get("expected", "a name").replace("'", "")
        return f"{where} has {_key(first['input'])}; expected {expected}"
    if kind == "missing" and len(place) == 1:
        return f"{_dotted(place)} is missing; expected {_form(place)}"
    if kind in _OF_FORM:
        expected = _form(path)
    elif kind == "literal_error":
        expected = limits["expected"].replace("'", "")
    elif len(path) < len(place):
        tags = (each["loc"][-1] for each in errors if each["loc"][:-1] == place[:-1])
        expected = " or ".join(dict.fromkeys(_EITHER.get(str(tag), str(tag)) for tag in tags))
    elif kind in _LIMITS:
        expected = _LIMITS[kind].format(**limits)
    elif kind in _TYPES:
        expected = _TYPES[kind]
    else:
        return printable(f"{_dotted(path)}: {first['msg'][0].lower()}{first['msg'][1:]}")
    value = first["input"]
    return f"{_dotted(path)} is {shown(value)}; expected {expected}"


def _path(place: tuple[int | str, ...], content: object) -> tuple[int | str, ...]:
    """Return the part of a place that exists in the content.

    pydantic adds the names of types, and numbers of missing values.
    """
    for number, key in enumerate(place):
        try:
            content = content[key]  # type: ignore[index]
        except (LookupError, TypeError):
            return place[:number]
    return place


def _form(path: tuple[int | str, ...]) -> str:
    forms = _FORMS.get(str(path[0]), ("a value",))
    return forms[min(len(path), len(forms)) - 1]


def _dotted(path: tuple[int | str, ...]) -> str:
    return printable(".".join(map(str, path)))


@contextmanager
def naming(attack: str) -> Iterator[None]:
    """Add the key of an attack in the grid to the messages of checks that do not name the attack.

    >>> with naming("ckd"):
    ...     raise UsageError("cap is 2; expected at most 1")
    Traceback (most recent call last):
    ...
    robustkd.core.errors.UsageError: attacks.ckd: cap is 2; expected at most 1
    """
    try:
        yield
    except UsageError as error:
        if f"attack {attack!r}" in str(error):
            raise
        raise UsageError(f"attacks.{attack}: {error}") from error


def _key(key: object) -> str:
    return "an empty key" if key is None else f"the key {shown(key)}"


def shown(value: object) -> str:
    """Return a value as a message shows it; a value that is missing in the YAML is empty."""
    text = "empty" if value is None else ascii(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
