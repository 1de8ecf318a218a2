"""Audits of teacher and student in ``results.json``, and their verdicts in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from robustkd.core.errors import printable
from robustkd.report.json_reader import LONGEST, Reader

NETWORKS = ("teacher", "student")
WORDS = ("suspicious", "no evidence", "inconclusive")
FAMILIES: Mapping[str, str] = {
    "additions": "the same addition to every image",
    "patterns": "the same masked pattern in every image",
    "warp": "the same smooth distortion of every image",
    "tone": "the same tone curve for every image",
    "light": "the same smooth change of the light of every image",
    "smooth": "the same smooth addition to every image",
    "filter": "the same small filter for every image",
    "warp+photometric": "the same distortion and change of colours of every image",
    # Of audits by earlier versions.
    "generator": "additions that depend on the image",
}
"""Description of each family of transformations."""
_LONGER_HELPS = "the references are led as well"
"""Reason without a p-value at which a longer audit helps, in results of earlier versions."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of an audit: its p-value, the class that it suspects, and what was found."""

    name: str
    p_value: float | None
    suspect: str
    said: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Led:
    """Success of the learned transformation that stands out most.

    Attributes:
        family: Description of the kind of transformation.
        target: Class to which it moves images.
        share: Share of images of other classes that it moves there, a fraction.
        beside: The same transformation with reference networks; None without references.
    """

    family: str
    target: str
    share: float
    beside: float | None


@dataclass(frozen=True, slots=True)
class Audit:
    """Audit of one network.

    Attributes:
        who: ``teacher`` or ``student``.
        word: One of :data:`WORDS`.
        suspected: Suspected target class; empty if there is none.
        reason: Reason in a few words.
        p_value: The p-value of the verdict; None if it could not be computed.
        longer_helps: Whether a longer audit may give another verdict than ``inconclusive``.
        statistics: All statistics.
        led: The transformation that stands out most; None if there is none.
        said_before: Classes that the network predicts for the images of the pictures.
        said_after: Classes that it predicts for the transformed images.
    """

    who: str
    word: str
    suspected: str
    reason: str
    p_value: float | None
    longer_helps: bool
    statistics: Sequence[Statistic]
    led: Led | None
    said_before: Sequence[str]
    said_after: Sequence[str]

    @property
    def line(self) -> str:
        """The verdict in one line."""
        return f"Audit of the {self.who}: {verdict(self.word, self.suspected, self.reason)}"


@dataclass(frozen=True, slots=True)
class Audits:
    """Audits of a run.

    Attributes:
        found: Audits of the networks; empty if none was made.
        failed: Why the audit could not be made; empty if it was made or left out.
    """

    found: Sequence[Audit] = ()
    failed: str = ""

    @property
    def lines(self) -> Sequence[str]:
        """The verdicts, one line each."""
        if self.failed:
            return [f"The audit could not be made ({self.failed})."]
        return [each.line for each in self.found]

    @property
    def student(self) -> str:
        """Verdict on the student; empty if there is none."""
        return next((each.word for each in self.found if each.who == "student"), "")

    @property
    def unclear(self) -> bool:
        """Whether a longer audit of the student could say more."""
        return any(
            each.word == "inconclusive" and each.longer_helps
            for each in self.found
            if each.who == "student"
        )

    @property
    def useless(self) -> bool:
        """Whether no audit of the student can help, as it failed or the data are too few."""
        return bool(self.failed) or (self.student == "inconclusive" and not self.unclear)


def verdict(word: str, suspected: str | None, reason: str) -> str:
    """Return a verdict in plain words.

    >>> verdict("suspicious", "cat", "led share")
    'suspicious; suspected target class: cat'
    >>> verdict("no evidence", None, "")
    'no evidence of a backdoor. This does not show that there is none.'
    """
    if word == "suspicious":
        return f"suspicious; suspected target class: {suspected}" if suspected else "suspicious"
    if word == "inconclusive":
        return f"inconclusive ({reason})"
    return "no evidence of a backdoor. This does not show that there is none."


def read_audits(record: Reader, classes: Sequence[str]) -> Audits:
    """Check the record of the audits.

    Args:
        record: Reader of the record; an empty one if no audit was made.
        classes: Names of the classes.

    Raises:
        InputError: If the record is not in the form in which this package writes it.
    """
    found = [_audit(who, record.inner(who), classes) for who in NETWORKS if who in record.content]
    return Audits(found, record.text("failed"))


def _audit(who: str, record: Reader, classes: Sequence[str]) -> Audit:
    told = record.inner("verdict")
    word = told.text("word")
    if word not in WORDS:
        raise told.wrong("word", word, ", ".join(WORDS))
    evidence = record.inner("evidence")
    statistics = {name: evidence.inner(name) for name in evidence.content}
    learned = [each for each in statistics.values() if _counts(each) and each.content.get("member")]
    first = min(learned, key=_place, default=None)  # the one of the pictures
    pictures = record.inner("pictures") if record.content.get("pictures") else None
    return Audit(
        who=who,
        word=word,
        suspected=record.text("suspected_class"),
        reason=told.text("reason"),
        p_value=_p_value(told),
        longer_helps=_longer_helps(told),
        statistics=[
            Statistic(
                printable(name)[:LONGEST],
                _p_value(each),
                _class(each.count("suspect"), classes),
                each.text("said"),
                _counts(each),
            )
            for name, each in statistics.items()
        ],
        led=None if first is None else _led(first, classes),
        said_before=list(_said(pictures, "before", classes)),
        said_after=list(_said(pictures, "after", classes)),
    )


def _place(statistic: Reader) -> float:
    """Return the p-value; 2 for a statistic without one."""
    p_value = _p_value(statistic)
    return 2.0 if p_value is None else p_value


def _led(statistic: Reader, classes: Sequence[str]) -> Led:
    member = statistic.inner("member")
    family = member.text("family")
    beside = None if member.content.get("beside") is None else member.share("beside")
    return Led(
        FAMILIES.get(family, family),
        _class(member.count("target"), classes),
        member.share("share"),
        beside,
    )


def _said(pictures: Reader | None, key: str, classes: Sequence[str]) -> Iterator[str]:
    for number in pictures.counts(key) if pictures is not None else ():
        yield _class(number, classes)


def _counts(statistic: Reader) -> bool:
    return statistic.content.get("counts") is True


def _longer_helps(told: Reader) -> bool:
    if "longer_helps" in told.content:
        return told.content["longer_helps"] is True
    return _p_value(told) is not None or told.text("reason") == _LONGER_HELPS


def _p_value(record: Reader) -> float | None:
    return None if record.content.get("p_value") is None else record.share("p_value")


def _class(number: int | None, classes: Sequence[str]) -> str:
    if number is None:
        return ""
    return classes[number] if number < len(classes) else str(number)
