"""Audit of a classifier whose trigger, if there is any, is unknown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError, UsageError
from robustkd.core.progress import track
from robustkd.core.types import DataSource
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_seed, check_share
from robustkd.evaluation.audit.effort import FULL, QUICK, Effort
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.logit_scale import at_usual_scale
from robustkd.evaluation.audit.pictures import Pictures, pictures_of
from robustkd.evaluation.audit.probe import probe_student
from robustkd.evaluation.audit.references import References, make_references
from robustkd.evaluation.audit.registry import COUNTED, statistics_of
from robustkd.evaluation.audit.search import held_out_images, search
from robustkd.evaluation.audit.verdict import LEVEL, Verdict, combine, threshold
from robustkd.training.beginning import check_readable
from robustkd.training.inference import (
    Searched,
    accuracy_on_some,
    finite_for,
    finite_on,
    frozen_copy,
    passes_gradient,
)
from robustkd.training.metrics import Proportion
from robustkd.training.trial import check_classifier

_PROBE = 7000
"""Added to the seed of the probe student, so that no network of the user has the same weights."""
_FAR_BELOW = 0.8
"""Share of the accuracy of the best reference below which the references are no scale.

Networks without a backdoor that know much less than the references are led further than these.
"""
_NO_GRADIENT = "no gradient passes through the model, so it cannot be searched"
_SOME = 64
"""Number of images on which the scale of logits and the gradient are measured."""
_GRAVITY = ("suspicious", "inconclusive", "no evidence")


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        verdict: Word, suspected class and p-value.
        evidence: Evidence by the name of its statistic.
        classes: Names of the classes.
        accuracy: Accuracy of the network on some validation images.
        reference_accuracies: Accuracies of the references on the same images.
        quick: Whether the quick audit was made.
        seconds: Wall time.
        probe: Audit of a student that was distilled from the network; None if none was made.
        pictures: Images before and after the transformation that stands out most by the statistic
            that decides; None if it is about none. If the verdict of the probe student counts, the
            pictures are of the probe student.
    """

    verdict: Verdict
    evidence: Mapping[str, Evidence]
    classes: tuple[str, ...]
    accuracy: Proportion
    reference_accuracies: tuple[Proportion, ...]
    quick: bool
    seconds: float
    probe: Audit | None = None
    pictures: Pictures | None = None

    @property
    def suspected(self) -> str | None:
        """Name of the suspected class; None if there is none."""
        return None if self.verdict.suspect is None else self.classes[self.verdict.suspect]

    def record(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return {
            "verdict": asdict(self.verdict),
            "suspected_class": self.suspected,
            "quick": self.quick,
            "accuracy": asdict(self.accuracy),
            "reference_accuracies": [asdict(each) for each in self.reference_accuracies],
            "classes": list(self.classes),
            "evidence": {
                name: {**each.record(), "counts": name in COUNTED}
                for name, each in self.evidence.items()
            },
            "seconds": round(self.seconds, 1),
            "probe": None if self.probe is None else self.probe.record(),
            "pictures": None if self.pictures is None else self.pictures.record(),
        }


@usual_state
def audit(
    model: nn.Module,
    data: DataSource,
    *,
    quick: bool = False,
    probe: bool = False,
    level: float | int = LEVEL,
    references: References | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> Audit:
    """Look for evidence of an unknown backdoor in a classifier, with clean images alone.

    Args:
        model: Any classifier of images in [0, 1], N x C x H x W; it is not changed.
        data: Clean labelled images. Transformations are learned on ``train``, and all measurements
            are made on ``validation``.
        quick: If True, search at one strength instead of two, use fewer references that see fewer
            images, and leave out slow statistics that are not part of the verdict.
        probe: If True, also distil a small student from the model and audit it, for backdoors that
            become active in students only. As two networks are tested, their p-values are doubled.
        level: Level of the test, in (0, 1).
        references: Networks that were trained from labels alone on the same data, and searched
            with the same effort; None to make them. Those of
            :func:`robustkd.evaluation.audit.make_references` serve for several audits. Without any,
            the verdict is inconclusive.
        effort: How much is computed; None for the usual amount.
        seed: Seed of everything random.

    Returns:
        The verdict and the evidence. ``no evidence`` does not show that there is no backdoor.

    Raises:
        UsageError: If ``level`` or ``seed`` is out of range, ``quick`` and ``effort`` are both
            given, the model does not fit the data, or the references were searched with another
            effort.
        InputError: If images, or outputs of the model on validation images, are not finite.

    Example:
        >>> import robustkd
        >>> from robustkd.evaluation.audit import Effort
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, (1, 8, 8))
        >>> untrained = robustkd.build(spec, seed=0)
        >>> brief = Effort(strengths=(0.5,), steps=2, references=0, margins=1)
        >>> robustkd.audit(untrained, data, effort=brief).verdict.word
        'inconclusive'
    """
    check_share(one=False, level=level)
    seed = check_seed(seed)
    check_classifier(model, data, name="the model")
    check_readable(model, name="the model")
    started = time.perf_counter()
    if quick and effort is not None:
        raise UsageError("quick and effort are given; expected one of them")
    if effort is not None and not isinstance(effort, Effort):
        raise UsageError(f"effort is of type {type(effort).__name__}; expected an Effort")
    if references is not None and not isinstance(references, References):
        raise UsageError(
            f"references is of type {type(references).__name__}; expected References, as "
            "make_references returns"
        )
    effort = (effort or (QUICK if quick else FULL)).for_classes(len(data.classes))
    network = frozen_copy(model)
    _check_finite(network, data, effort)
    if references is None:
        references = make_references(data, effort, seed=seed)
    references = references.for_audit(effort, device_of(network))
    tests = 2 if probe else 1
    found = replace(_audited(network, data, references, effort, level, tests, seed), quick=quick)
    if probe:
        student = probe_student(network, data, images=effort.reference_images, seed=_PROBE + seed)
        inner = _audited(student, data, references, effort, level, tests, seed)
        inner = replace(inner, quick=quick)
        found = replace(found, probe=inner)
        if _GRAVITY.index(inner.verdict.word) < _GRAVITY.index(found.verdict.word):
            reason = f"probe student: {inner.verdict.reason}"
            decides = replace(inner.verdict, reason=reason)
            found = replace(found, verdict=decides, pictures=inner.pictures)
    return replace(found, seconds=time.perf_counter() - started)


def _check_finite(network: nn.Module, data: DataSource, effort: Effort) -> None:
    """Check the outputs for the first validation images, and for those of the statistics.

    Raises:
        InputError: If they are not finite.
    """
    held_out, _ = held_out_images(data, effort, device_of(network))
    if not (
        finite_on(network, data, "validation", images=effort.accuracy_images)
        and finite_for(network, held_out)
    ):
        raise InputError(
            f"the outputs of the model are not finite on the validation images of {data.name}; "
            "expected weights that were trained on such images"
        )


def _audited(
    network: nn.Module,
    data: DataSource,
    references: References,
    effort: Effort,
    level: float | int,
    tests: int,
    seed: int,
) -> Audit:
    """Compute all statistics of a frozen network, and the verdict."""
    started = time.perf_counter()
    accuracy, *theirs = (
        accuracy_on_some(each, data, "validation", images=effort.accuracy_images, augment=False)
        for each in (network, *references.networks)
    )
    made = partial(
        Audit,
        classes=data.classes,
        accuracy=accuracy,
        reference_accuracies=tuple(theirs),
        quick=False,
    )
    trouble = _trouble(accuracy, theirs, len(data.classes))
    some = held_out_images(data, effort, device_of(network))[0][:_SOME]
    compared = Searched(at_usual_scale(network, references.networks, some))
    if passes_gradient(compared, some):
        with track("audit: transformations", effort.search_steps) as tell:
            beside = references.networks
            found = search(compared, data, effort, seed=seed, beside=beside, tell=tell)
        if not trouble and compared.trouble:
            trouble = f"the model cannot be searched: {compared.trouble}"
    else:
        found = ()
        trouble = trouble or _NO_GRADIENT
    evidence: dict[str, Evidence] = {}
    pictures = None
    if found and not compared.trouble:
        needed = threshold(level, tests * len(COUNTED))
        subject = Subject(network, data, references, found, effort, seed, needed)
        chosen = statistics_of(effort)
        with track("audit: statistics", len(chosen)) as tell:
            for name, statistic in chosen.items():
                evidence[name] = statistic.compute(subject)
                tell()
        pictures = _pictures(subject, evidence)
    verdict = combine(evidence, COUNTED, level=level, tests=tests, trouble=trouble)
    return made(verdict, evidence, seconds=time.perf_counter() - started, pictures=pictures)


def _pictures(subject: Subject, evidence: Mapping[str, Evidence]) -> Pictures | None:
    """Draw what the statistic with the smallest p-value found; None if none learned anything."""
    learned = [each for name, each in evidence.items() if name in COUNTED and each.member]
    if not learned:
        return None
    first = min(learned, key=lambda each: 2.0 if each.p_value is None else each.p_value)
    return None if first.member is None else pictures_of(subject, first.member)


def _trouble(accuracy: Proportion, references: Sequence[Proportion], classes: int) -> str:
    """Return why the statistics mean nothing; empty if they mean something."""
    best = max((each.value for each in references), default=0.0)
    usual = max(2 / classes, _FAR_BELOW * best)
    if accuracy.value >= min(usual, 1 - 1 / (2 * classes)):
        return ""
    said = f"the model is right on only {accuracy.value:.1%} of the validation images"
    below = _FAR_BELOW * best > accuracy.value
    return f"{said}, and a reference network on {best:.1%}" if below else said
