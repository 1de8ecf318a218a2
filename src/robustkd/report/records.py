"""Reader of the records in ``results.json``: how a model was made, and details of its accuracy.

Every record is optional, so that results of older versions still have a report. Existing records
are checked, since a results file may come from somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from robustkd.core.errors import printable
from robustkd.core.methods import label_of
from robustkd.report.audits import Audits, read_audits
from robustkd.report.json_reader import LONGEST, Reader
from robustkd.report.results import Results

Epoch: TypeAlias = Mapping[str, float]

_MOST_EPOCHS = 100_000
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Strength:
    """One strength of detoxification that was tried; accuracy and variance are fractions.

    Attributes:
        weight: Weight of the variance term.
        accuracy: Clean validation accuracy of the teacher with these masks.
        variance: Variance of the cleaned features as a share of that of the original ones.
        within: Whether the accuracy is within the budget.
    """

    weight: float
    accuracy: float
    variance: float
    within: bool


@dataclass(frozen=True, slots=True)
class Detox:
    """Record of a detoxification.

    Attributes:
        method: Label of the method; empty in a run of a single method.
        before: Clean validation accuracy of the teacher as given, a fraction.
        after: That of the cleaned teacher.
        stages: Module path, mean of the mask and remaining share of the variance of each stage.
        tried: Strengths in the order in which they were tried.
    """

    method: str
    before: float
    after: float
    stages: Sequence[tuple[str, float, float]]
    tried: Sequence[Strength]

    @property
    def kept(self) -> Strength | None:
        """The strength whose masks are used: the largest within the budget; None if none is."""
        within = [each for each in self.tried if each.within]
        return max(within, key=lambda each: each.weight, default=None)


@dataclass(frozen=True, slots=True)
class Training:
    """Epochs of one training; ``kept`` is the number of the selected epoch, None if unknown."""

    label: str
    epochs: Sequence[Epoch]
    kept: int | None

    @property
    def names(self) -> Sequence[str]:
        """Names of the recorded numbers without that of the epoch, up to a limit."""
        found = dict.fromkeys(name for epoch in self.epochs for name in epoch if name != "epoch")
        return list(found)[:_MOST_NAMES]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Number of test images of a class, and of those that teacher and student classify correctly.

    >>> ClassScore("cat", images=50, teacher=48, student=40).lost
    0.16
    """

    name: str
    images: int
    teacher: int
    student: int

    @property
    def lost(self) -> float:
        """Accuracy of the teacher minus that of the student, a fraction; 0 without images."""
        return (self.teacher - self.student) / self.images if self.images else 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """Size of a network's file in bytes, and operations for one image; None if unknown."""

    size: int | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """Checked records of a run.

    Attributes:
        classes: Class names as printable text; empty if unknown.
        scores: Accuracy of each class, largest losses first; empty if unknown.
        trainings: One entry per model that was trained with records of its epochs.
        detox: One entry per method that detoxifies.
        shape: Channels, height and width of the images; empty if unknown.
        sizes: Number of images of each split; empty if unknown.
        networks: Sizes of ``teacher`` and ``student``.
        left_out: Number of files of the data that were left out, by kind.
        audits: Audits of teacher and student.
    """

    classes: tuple[str, ...]
    scores: Sequence[ClassScore]
    trainings: Sequence[Training]
    detox: Sequence[Detox]
    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    networks: Mapping[str, Network]
    left_out: Mapping[str, int]
    audits: Audits


def read_records(results: Results, file: object) -> Records:
    """Check the records of results.

    Args:
        results: The results.
        file: Path of the file, for messages.

    Raises:
        InputError: If a known record is not in the form in which this package writes it. The
            message is one line that names the file, the key and the value.
    """
    content = Reader(f"{file}: records", results.records)
    found = results.records.get("classes")
    classes = tuple(printable(str(name)) for name in found) if isinstance(found, list) else ()
    made = list(_made(content))
    data = content.inner("data")
    if isinstance(results.records.get("teacher_file"), dict):
        content.inner("teacher_file").count("bytes")
    return Records(
        classes=classes,
        scores=_scores(content.inner("by_class"), classes),
        trainings=[each for label, one in made if (each := _training(label, one)) is not None],
        detox=[_detox(label, one.inner("detox")) for label, one in made if "detox" in one.content],
        shape=tuple(data.counts("shape")),
        sizes={
            name: data.count(name) or 0
            for name in ("train", "validation", "test")
            if name in data.content
        },
        networks={
            who: Network(one.count("bytes"), one.count("macs"))
            for who in ("teacher", "student")
            if (one := content.inner("networks").inner(who)).content
        },
        left_out=content.inner("left_out").all_counts(),
        audits=read_audits(content.inner("audit"), classes),
    )


def _made(content: Reader) -> Iterator[tuple[str, Reader]]:
    """Yield label and record of each model that was made: of one run, or of the demo's methods."""
    yield "", content
    for key, value in content.content.items():
        method, _, seed = key.rpartition("/")
        if seed == "0" and isinstance(value, dict):
            yield label_of(method), content.inner(key)


def _training(label: str, made: Reader) -> Training | None:
    epochs = made.items("epochs")
    if not epochs:
        return None
    if len(epochs) > _MOST_EPOCHS:
        raise made.wrong("epochs", epochs, f"at most {_MOST_EPOCHS} epochs")
    read = [_epoch(made, i, epoch) for i, epoch in enumerate(epochs)]
    return Training(label, read, made.count("kept"))


def _epoch(made: Reader, place: int, epoch: object) -> Epoch:
    key = f"epochs[{place}]"
    if not isinstance(epoch, dict):
        raise made.wrong(key, epoch, "an object with numbers")
    each = Reader(f"{made.where}.{key}", epoch)
    return {printable(name)[:LONGEST]: each.number(name) for name in epoch}


def _detox(label: str, record: Reader) -> Detox:
    stages = record.items("stages")
    masks, variances = record.numbers("mean_mask"), record.numbers("variance_ratio")
    if not len(stages) == len(masks) == len(variances):
        raise record.wrong("mean_mask", masks, f"{len(stages)} numbers, one per stage")
    tried = [
        Reader(f"{record.where}.curve[{i}]", point if isinstance(point, dict) else {})
        for i, point in enumerate(record.items("curve"))
    ]
    return Detox(
        method=label,
        before=record.share("accuracy_before"),
        after=record.share("accuracy_after"),
        stages=[
            (printable(str(name))[:LONGEST], mask, variance)
            for name, mask, variance in zip(stages, masks, variances, strict=True)
        ],
        tried=[
            Strength(
                each.number("variance_weight"),
                each.share("accuracy"),
                each.number("variance_ratio"),
                each.content.get("within_budget") is True,
            )
            for each in tried
        ],
    )


def _scores(record: Reader, classes: Sequence[str]) -> list[ClassScore]:
    images = record.counts("images")
    found = {who: record.counts(who) for who in ("teacher", "student")}
    for who, hits in found.items():
        many = any(hit > n for hit, n in zip(hits, images, strict=False))
        if len(hits) != len(images) or many:
            raise record.wrong(who, hits, "one number per class, at most that of its images")
    scores = [
        ClassScore(classes[i] if i < len(classes) else str(i), *counts)
        for i, counts in enumerate(zip(images, *found.values(), strict=True))
    ]
    return sorted((score for score in scores if score.images), key=lambda score: -score.lost)
