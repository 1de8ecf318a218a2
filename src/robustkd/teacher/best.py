"""The choice between several networks that a file may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from robustkd.core.errors import InputError
from robustkd.models.classifier import Classifier
from robustkd.teacher.facts import Teacher
from robustkd.teacher.options import Options, shown_key


class Best:
    """The most accurate of several networks, or the first; only one is kept in memory.

    Args:
        judge: Function that returns the accuracy of a network; None to keep the first.
        options: The state dicts from which the networks come.
    """

    def __init__(self, judge: Callable[[Classifier], float] | None, options: Options) -> None:
        self._judge = judge
        self._options = options
        self._kept: Teacher | None = None
        self._accuracy = -1.0
        self._accuracies: dict[str, float] = {}

    def add(self, label: str, teacher: Teacher, *, last: bool) -> None:
        """Measure a network if there are several, and keep it if it is the most accurate so far.

        Args:
            label: Label of its state dict.
            teacher: The network.
            last: Whether there is no other network for this state dict.
        """
        if self._judge is None or (last and len(self._options.labels) == 1):
            self._kept = self._kept or teacher
            return
        accuracy = self._judge(teacher.model)
        self._accuracies[label] = max(accuracy, self._accuracies.get(label, 0.0))
        if self._kept is None or accuracy > self._accuracy:
            self._kept, self._accuracy = teacher, accuracy

    def best(self) -> Teacher:
        """Return the best network; its facts list all state dicts if there are several."""
        if self._kept is None:
            raise InputError("no state dict was read; the file changed while it was read")
        labels = self._options.labels
        if len(labels) == 1:
            return self._kept
        listed = tuple(map(self._shown, labels))
        return replace(self._kept, file=replace(self._kept.file, candidates=listed))

    def _shown(self, label: str) -> str:
        if label not in self._accuracies:
            return shown_key(label)
        return f"{shown_key(label)} (accuracy {self._accuracies[label]:.1%})"
