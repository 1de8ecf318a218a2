"""Properties of a teacher's file, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from robustkd.core.errors import quoted
from robustkd.models.classifier import Classifier
from robustkd.teacher import match
from robustkd.teacher.options import Option
from robustkd.teacher.untrusted import quarantine

_MOST_IGNORED = 20


@dataclass(frozen=True, slots=True)
class TeacherFile:
    """Properties of a teacher's file, for the report.

    Attributes:
        name: File name without the folder.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
        format: ``safetensors``, ``torch zip`` or ``torch legacy``.
        key: Key of the state dict in the file; empty if the file is one.
        candidates: State dicts in the file that fit the architecture, with their accuracies on
            validation images where these were measured; empty if there is only one.
        matched: Number of tensors of the network, all of which are in the file.
        filled: Number of batch counters that the file lacks; they do not affect a trained network.
        wrappers: Keys and prefixes around the state dict that were removed, outermost first.
        ignored: Other keys in the file, which were not read, and names of tensors that are not part
            of the network; quoted. If there are many, the last entry says how many more.
        by_order: Whether tensors were matched by order and shape, since their names differ.
        outputs: Numbers of the teacher's outputs that are used, if it has more classes than the
            data.
        converted: Number of tensors that were converted to float32, by their type.
        normalisation: Origin of mean and standard deviation.
        limits: Limits of the reading process that were in force.
    """

    name: str
    bytes: int
    sha256: str
    format: str
    key: str
    candidates: tuple[str, ...]
    matched: int
    filled: int
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]
    by_order: bool
    outputs: tuple[int, ...]
    converted: Mapping[str, int]
    normalisation: str
    limits: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """Return the properties as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher in eval mode, and the properties of its file."""

    model: Classifier
    file: TeacherFile


def facts_of(
    read: quarantine.Quarantined, option: Option, weights: match.Matched, source: str
) -> TeacherFile:
    """Return the properties of a file from which a teacher was read."""
    around, plan = read.surroundings, option.plan
    ignored = (*around.ignored, *map(quoted, plan.ignored))
    more = around.more + max(0, len(ignored) - _MOST_IGNORED)
    left = (f"and {more} more",) if more else ()
    return TeacherFile(
        name=read.name,
        bytes=read.bytes,
        sha256=read.sha256,
        format=read.verdict.format,
        key=option.label,
        candidates=(),
        matched=len(plan.names),
        filled=len(plan.filled),
        wrappers=(*around.wrappers, *plan.prefixes),
        ignored=(*ignored[:_MOST_IGNORED], *left),
        by_order=plan.by_order,
        outputs=(),
        converted=weights.converted,
        normalisation=source,
        limits=read.verdict.enforced,
    )
