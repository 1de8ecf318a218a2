"""Names of methods with a defence of the registry, or with weights of losses of their own.

Results are stored under names. ``teacher-ft-sam+mix`` cleans the teacher by FT-SAM and then distils
as the method ``mix`` does; ``mix+student-ft-sam`` cleans the student of ``mix``. ``kd-1+ofd-0.5``
stands for ordinary distillation with these weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_text

Side: TypeAlias = Literal["teacher", "student"]

_DIGITS = 6
_WEIGHT = re.compile(rf"([a-z]+)-(\d{{1,9}}(?:\.\d{{1,{_DIGITS}}})?)")


@dataclass(frozen=True)
class NetworkDefence:
    """Use of a defence that cleans a network.

    Attributes:
        name: Name of the defence in the registry; see ``robustkd list``.
        on: Network that is cleaned: the teacher before the distillation, or the finished student.

    Raises:
        UsageError: If ``on`` is something else.
    """

    name: str
    on: Side = "teacher"

    def __post_init__(self) -> None:
        if self.on not in get_args(Side):
            raise UsageError(f"on is {self.on!r}; expected {' or '.join(get_args(Side))}")

    def around(self, method: str) -> str:
        """Return the name of a method with this defence.

        >>> NetworkDefence("ft-sam").around("mix"), NetworkDefence("anp", "student").around("ofd")
        ('teacher-ft-sam+mix', 'ofd+student-anp')
        """
        if self.on == "teacher":
            return f"teacher-{self.name}+{method}"
        return f"{method}+student-{self.name}"


class Parts(NamedTuple):
    """A name in parts: the defence, None without one, and the method that it is added to."""

    defence: NetworkDefence | None
    base: str


def split_name(name: str) -> Parts:
    """Split the name of a method; the parts are not checked.

    Raises:
        UsageError: If the name is no string.

    >>> split_name("teacher-ft-sam+mix").base, split_name("ofd+student-anp").base
    ('mix', 'ofd')
    >>> split_name("kd+ofd")
    Parts(defence=None, base='kd+ofd')
    """
    check_text(method=name)
    if name.startswith("teacher-") and "+" in name:
        defence, _, base = name.removeprefix("teacher-").partition("+")
        return Parts(NetworkDefence(defence), base)
    base, sign, defence = name.rpartition("+student-")
    return Parts(NetworkDefence(defence, "student"), base) if sign else Parts(None, name)


def losses_name(losses: Mapping[str, float]) -> str:
    """Return a name for weights of losses.

    Raises:
        UsageError: If a weight has more than six decimals or more than nine digits before them.

    >>> losses_name({"ofd": 0.5, "kd": 1})
    'kd-1+ofd-0.5'
    """
    parts = []
    for name, weight in sorted(losses.items()):
        text = f"{weight:.{_DIGITS}f}".rstrip("0").rstrip(".")
        if float(text) != weight or not _WEIGHT.fullmatch(f"{name}-{text}"):
            raise UsageError(
                f"weight of distillation loss {name!r} is {weight}; expected a number above 0 with "
                "at most six decimals"
            )
        parts.append(f"{name}-{text}")
    return "+".join(parts)


def losses_of(name: str) -> dict[str, float] | None:
    """Return the weights in a name that :func:`losses_name` made; None for any other name.

    >>> losses_of("kd-1+ofd-0.5"), losses_of("additions-kd")
    ({'kd': 1.0, 'ofd': 0.5}, None)
    """
    found = [_WEIGHT.fullmatch(part) for part in name.split("+")]
    known = [part for part in found if part is not None]
    return {part[1]: float(part[2]) for part in known} if len(known) == len(found) else None
