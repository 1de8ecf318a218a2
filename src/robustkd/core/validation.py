"""Checks of numeric arguments."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from robustkd.core.errors import UsageError

# The largest seed for which 2 * seed + 1 is a valid seed of torch's generators.
LARGEST_SEED = 2**62 - 1
# More than any machine has cores; with far more, the process crashes when memory for stacks ends.
MOST_THREADS = 1024
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
"""Largest finite number of float32, in which all optimisers compute."""
LARGEST_RATE = LARGEST_FLOAT32 / 100
"""Largest learning rate with which an optimiser can take a step.

Adam and its relatives divide the rate by 1 - beta in their first step, and no beta of PyTorch and
timm that a rate is divided by is above 0.99.
"""


def check_positive(**values: object) -> None:
    """Raise an error for an argument that is not a finite number above zero.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        number = _number(name, value)
        if not 0 < number < math.inf:
            expected = "a finite number" if number == math.inf else "more than 0"
            raise UsageError(f"{name} is {value}; expected {expected}")


def check_rates(**values: object) -> None:
    """Raise an error for a learning rate that is not above zero, or too large for float32.

    Raises:
        UsageError: Naming the first that is not.

    >>> check_rates(lr=1e38)
    Traceback (most recent call last):
    ...
    robustkd.core.errors.UsageError: lr is 1e+38; expected at most 3.4e+36, as float32 must hold it
    """
    check_positive(**values)
    for name, value in values.items():
        if _number(name, value) > LARGEST_RATE:
            raise UsageError(
                f"{name} is {value}; expected at most {LARGEST_RATE:.1e}, as float32 must hold it"
            )


def check_decay(weight_decay: object, lr: object) -> None:
    """Raise an error for a weight decay whose product with the learning rate is not of float32.

    Args:
        weight_decay: The weight decay, at least 0.
        lr: A learning rate that :func:`check_rates` accepts.

    Raises:
        UsageError: If the weight decay is negative or no finite number, or too large.
    """
    check_not_negative(weight_decay=weight_decay)
    most = LARGEST_RATE / max(1.0, _number("lr", lr))
    if _number("weight_decay", weight_decay) > most:
        raise UsageError(
            f"weight_decay is {weight_decay}; expected at most {most:.1e} with a learning rate of "
            f"{lr}, as float32 must hold their product"
        )


def check_not_negative(**values: object) -> None:
    """Raise an error for an argument that is not a finite number of at least zero.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        number = _number(name, value)
        if not 0 <= number < math.inf:
            expected = "a finite number" if number == math.inf else "at least 0"
            raise UsageError(f"{name} is {value}; expected {expected}")


def check_share(*, zero: bool = False, one: bool = True, **values: object) -> None:
    """Raise an error for an argument that is not a number between 0 and 1.

    Args:
        zero: Whether 0 itself is allowed.
        one: Whether 1 itself is allowed.
        values: The arguments by name.

    Raises:
        UsageError: Naming the first that is not.

    >>> check_share(zero=True, one=False, budget=1.0)
    Traceback (most recent call last):
    ...
    robustkd.core.errors.UsageError: budget is 1.0; expected at least 0 and below 1
    """
    low, high = "at least 0" if zero else "above 0", "at most 1" if one else "below 1"
    expected = "0 to 1" if zero and one else f"{low} and {high}"
    for name, value in values.items():
        number = _number(name, value)
        if not 0 <= number <= 1 or (number == 0 and not zero) or (number == 1 and not one):
            raise UsageError(f"{name} is {value}; expected {expected}")


def check_count(*, least: int = 1, **values: object) -> None:
    """Raise an error for an argument that is not a whole number of at least ``least``.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if _whole(name, value) < least:
            raise UsageError(f"{name} is {value}; expected at least {least}")


def check_names(**values: object) -> None:
    """Raise an error for an argument that is not a list or tuple of strings.

    Python would take a single string as the list of its letters.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise UsageError(f"{name} is {value!r}; expected a list of names")


def check_text(**values: object) -> None:
    """Raise an error for an argument that is not a string.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}; expected a name")


def check_paths(**values: object) -> None:
    """Raise an error for an argument that is neither None nor a path.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise UsageError(f"{name} is of type {type(value).__name__}; expected a path")


def check_switches(**values: object) -> None:
    """Raise an error for an argument that is not a boolean; a text such as "no" counts as true.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; expected True or False")


def plain_number(value: object) -> object:
    """Return a number of any type, such as those of NumPy, as one that JSON and YAML can hold.

    Args:
        value: The number; values that are no numbers are returned as they are.

    >>> from fractions import Fraction
    >>> plain_number(Fraction(1, 2)), plain_number(3), plain_number("3")
    (0.5, 3, '3')
    """
    if isinstance(value, bool) or type(value) in (int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def hold_plain_numbers(settings: Any) -> None:  # noqa: ANN401 (typing has no name for dataclasses)
    """Replace numbers of other types, such as those of NumPy, in the fields of a frozen dataclass.

    PyTorch and files accept only Python's own in many places.
    """
    for field in fields(settings):
        object.__setattr__(settings, field.name, plain_number(getattr(settings, field.name)))


def plain_numbers(name: str, values: object) -> tuple[float, ...]:
    """Return a list, tuple, array or tensor of numbers as a tuple of Python's own numbers.

    Args:
        name: Name of the argument, for the message.
        values: The numbers.

    Raises:
        UsageError: If it is something else, such as a single number.
    """
    found = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(found, list | tuple):
        raise UsageError(f"{name} is {found!r}; expected a list of numbers, one for each channel")
    for each in found:
        _number(name, each)
    return tuple(int(each) if isinstance(each, Integral) else float(each) for each in found)


def check_whole(**values: object) -> None:
    """Raise an error for an argument that is not a whole number, such as 1.5 or True.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        _whole(name, value)


def check_seed(seed: object, name: str = "seed") -> int:
    """Return a seed of any integer type, such as those of NumPy, as the generators take it.

    Args:
        seed: The seed.
        name: Name of the argument, for the message.

    Returns:
        The seed as a number of Python, since ``torch.Generator`` refuses all others.

    Raises:
        UsageError: If it is no whole number from 0 to ``LARGEST_SEED``.
    """
    number = _whole(name, seed)
    if number < 0:
        raise UsageError(f"{name} is {seed}; expected at least 0")
    if number > LARGEST_SEED:
        raise UsageError(f"{name} is {seed}; expected at most {LARGEST_SEED}")
    return number


def check_threads(threads: object, name: str = "threads") -> None:
    """Raise an error for a number of threads that no machine can use.

    Args:
        threads: The number.
        name: Name of the argument, for the message.

    Raises:
        UsageError: If it is no whole number from 1 to ``MOST_THREADS``.
    """
    if not 1 <= _whole(name, threads) <= MOST_THREADS:
        raise UsageError(f"{name} is {threads}; expected 1 to {MOST_THREADS}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"{name} is too large; expected a number below 1e308") from None


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r}; expected a whole number")
    return int(value)
