r"""Led share: targeted universal transformations, beside reference networks.

For every family f of transformations (see :mod:`robustkd.evaluation.audit.search`), strength s and
class k, a transformation is learned that moves any image to k. With the share :math:`a_{sfk}` of
held-out images of other classes that it moves, and the share :math:`b_{rsfk}` that *the same
transformation* moves for a reference network r, the statistic of a family at a strength is the
outlier among classes of

.. math:: d_{sfk} = a_{sfk} - \frac{1}{R} \sum_r b_{rsfk}

What moves images of all networks is a weakness of the data; what moves those of this network alone
was learned from something else than the data. Without references, :math:`d_{sfk} = a_{sfk}`, and
:math:`c_{sf}` below is 0.

Strong transformations lead networks without a backdoor as well, networks of some architectures
further than others. Transformations that were learned *against a reference* show how far. With the
largest share :math:`c_{sf}` that they move to any class of any reference, a family is left out at
the strengths at which :math:`c_{sf} > 0.3`, and at all others a class counts only if
:math:`a_{sfk} - c_{sf} \ge 0.3`.

Null distribution: the :math:`d_{sfk}` of one family and strength are normal with one mean over
classes; the deleted residual of the largest one has Student's distribution
(:func:`robustkd.evaluation.audit.outliers.student_outlier`). The standard deviation is taken to be
at least 0.05. Bonferroni over classes, families and strengths.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Wang et al. 2019,
Neural Cleanse, doi 10.1109/SP.2019.00031 (outlier among classes of an optimised trigger).
Differences: a bounded transformation of several families is scored by its success, where Neural
Cleanse minimises the size of a patch; all classes are learned at once; the result is compared with
reference networks.
"""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from robustkd.evaluation.audit.evidence import Evidence, Member, Subject
from robustkd.evaluation.audit.outliers import FEWEST, student_outlier
from robustkd.evaluation.audit.search import FAMILIES
from robustkd.student.families.search import led_shares

LEAST_SPREAD = 0.05
"""Smallest standard deviation over classes: smaller differences of success mean nothing."""
LED = "the references are led as well"
"""What is said if no family counts at any strength."""
EASY = 0.3
"""Share of images beyond which a search leads a reference too far to be evidence elsewhere."""
MARGIN = 0.3
"""Share of images by which a network must be led further than references by their own search."""


def led_share(subject: Subject) -> Evidence:
    """Compare the success of learned transformations with that on the reference networks."""
    images, labels = subject.held_out()
    shares = led_shares(
        [subject.network, *subject.references.networks],
        subject.found,
        images,
        labels,
        held_out=subject.effort.held_out,
        seed=subject.seed,
        classes=subject.classes,
    )
    return compared(shares[0], shares[1:], subject.references.led)


def compared(
    own: Float[Tensor, "strengths families classes"],
    beside: Float[Tensor, "references strengths families classes"],
    led: Float[Tensor, "strengths families"] | None = None,
) -> Evidence:
    """Test the shares of a network beside those of references, of which there may be none.

    Args:
        own: Shares of the network.
        beside: Shares of the references, by the same transformations.
        led: Largest shares of the references, by transformations that were learned against them.
    """
    details = {
        "families": list(FAMILIES),
        "shares": own.tolist(),
        "references": beside.tolist(),
        "references led": None if led is None else led.tolist(),
    }
    excess = own - beside.mean(0) if len(beside) else own
    ceiling = torch.zeros(own.shape[:2]) if led is None else led
    found = []
    for strength, family in product(range(own.shape[0]), range(own.shape[1])):
        outlier = student_outlier(excess[strength, family].tolist(), spread=LEAST_SPREAD)
        known = float(ceiling[strength, family])
        if outlier is None or known > EASY:
            continue
        if float(own[strength, family, outlier.place]) < known + MARGIN:
            outlier = outlier._replace(p_value=1.0)
        found.append((strength, family, outlier))
    if not found:
        said = LED if own.shape[2] >= FEWEST else "too few classes to compare"
        member = _member(own, beside, *_place(excess))
        return Evidence(None, None, said, details=details, member=member)
    # Of several without evidence, the one with the largest excess is shown.
    strength, family, best = min(
        found, key=lambda each: (each[2].p_value, -float(excess[each[0], each[1], each[2].place]))
    )
    member = _member(own, beside, strength, family, best.place)
    said = f"{member.family}: {member.share:.0%} of the images of other classes move to this class"
    if member.beside is not None:
        said += f", {member.beside:.0%} with references"
    scores = tuple(excess[strength, family].tolist())
    p_value = min(1.0, len(found) * best.p_value)
    return Evidence(p_value, best.place, said, scores, details, member)


def _place(values: Float[Tensor, "strengths families classes"]) -> tuple[int, int, int]:
    """Return the place of the largest value."""
    cell, target = divmod(int(values.argmax()), values.shape[2])
    return (*divmod(cell, values.shape[1]), target)


def _member(
    own: Float[Tensor, "strengths families classes"],
    beside: Float[Tensor, "references strengths families classes"],
    strength: int,
    family: int,
    target: int,
) -> Member:
    """Describe one learned transformation."""
    return Member(
        strength,
        FAMILIES[family],
        target,
        float(own[strength, family, target]),
        float(beside[:, strength, family, target].mean()) if len(beside) else None,
    )
