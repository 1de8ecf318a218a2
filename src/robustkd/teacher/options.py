"""Selection of the state dict of the teacher among those in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.teacher import match
from robustkd.teacher.untrusted.quarantine import Layout, Quarantined


@dataclass(frozen=True, slots=True)
class Option:
    """A state dict that fits the architecture.

    Attributes:
        number: Number of the state dict in the file.
        plan: How its tensors become those of the network.
        label: Keys that lead to it, joined by dots. If one state dict has several networks, the
            prefix follows. Empty if the file is the state dict.
    """

    number: int
    plan: match.Plan
    label: str


class Options:
    """State dicts in a file that fit an architecture.

    Args:
        wanted: The network.
        path: The file, for messages.
        key: Key of the state dict that the user names; None for any.
        judged: Whether several state dicts can be compared; otherwise the first is used.

    Attributes:
        wanted: The network.
        labels: Labels of all that fit, once :meth:`choose` has been called.
    """

    def __init__(self, wanted: match.Wanted, path: Path, key: str | None, *, judged: bool) -> None:
        self.wanted = wanted
        self._path = path
        self._key = key
        self._judged = judged
        self._options: list[Option] = []
        self.labels: tuple[str, ...] = ()
        self._orders: dict[int, tuple[str, ...]] = {}

    def of(self, number: int) -> list[Option]:
        """Return the options in the state dict with this number."""
        return [option for option in self._options if option.number == number]

    def in_order(self, read: Quarantined) -> Mapping[str, Tensor]:
        """Return the tensors of a state dict in the order of its file."""
        order = self._orders[read.choice]
        return {name: read.tensors[name] for name in order if name in read.tensors}

    def choose(self, layouts: Sequence[Layout]) -> list[int]:
        """Return the numbers of the state dicts to read.

        Raises:
            UsageError: If the file has no state dict under the key that the user names.
            InputError: If no state dict fits; the error is that of the largest.
        """
        keys = [".".join(layout.surroundings.wrappers) for layout in layouts]
        errors: list[tuple[int, InputError]] = []
        for number, layout in enumerate(layouts):
            # A key may be followed by the prefix of one of several networks.
            if self._key is not None and not f"{self._key}.".startswith(_open(keys[number])):
                continue
            try:
                self._add(number, layout, keys[number])
            except InputError as error:
                errors.append((len(layout.tensors), error))
        if self._key is not None:
            self._keep_named(keys, failed=bool(errors) and not self._options)
        if not self._options:
            raise max(errors, key=lambda error: error[0])[1]
        self.labels = tuple(option.label for option in self._options)
        if not self._judged:
            self._options = self._options[:1]
        return list(dict.fromkeys(option.number for option in self._options))

    def _add(self, number: int, layout: Layout, key: str) -> None:
        plans = match.plans(layout.tensors, self.wanted, self._path, ordered=layout.ordered)
        self._orders[number] = tuple(layout.tensors)
        for plan in plans:
            inner = plan.prefix.rstrip(".") if len(plans) > 1 else ""
            self._options.append(Option(number, plan, ".".join(filter(None, (key, inner)))))

    def _keep_named(self, keys: Sequence[str], *, failed: bool) -> None:
        """Keep the options under the key that the user names."""
        labels = [*keys, *(option.label for option in self._options)]
        named = [option for option in self._options if option.label == self._key]
        whole = [option for option in self._options if keys[option.number] == self._key]
        if self._key not in labels:
            if not any(labels):
                raise UsageError(
                    f"teacher_key is {quoted(str(self._key))}; {self._path} has one state dict, "
                    "which is under no key: leave it out"
                )
            known = ", ".join(shown_key(label) for label in dict.fromkeys(labels))
            raise UsageError(
                f"teacher_key is {quoted(str(self._key))}; {self._path} has {known}: give one of "
                "these, or leave it out"
            )
        self._options = [] if failed else named or whole


def shown_key(label: str) -> str:
    """Return the label of a state dict for a message.

    >>> shown_key("model.ema"), shown_key("")
    ("'model.ema'", 'the whole file')
    """
    return quoted(label) if label else "the whole file"


def _open(key: str) -> str:
    return f"{key}." if key else ""
