r"""Led share: targeted universal transformations, beside reference networks.

For every family f of transformations (see :mod:`robustkd.evaluation.audit.search`) and class k, a
transformation is learned that moves any image to k. With the share :math:`a_{fk}` of held-out
images of other classes that it moves, averaged over strengths, and the share :math:`b_{rfk}` that
*the same transformation* moves for a reference network r, the statistic of a family is the outlier
among classes of

.. math:: d_{fk} = a_{fk} - \frac{1}{R} \sum_r b_{rfk}

What moves images of all networks is a weakness of the data; what moves those of this network alone
was learned from something else than the data. Without references, :math:`d_{fk} = a_{fk}`.

Null distribution: the :math:`d_{fk}` of one family are normal with one mean over classes; the
deleted residual of the largest one has Student's distribution
(:func:`robustkd.evaluation.audit.outliers.student_outlier`). The standard deviation is taken to be
at least 0.05. Bonferroni over classes and families.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Wang et al. 2019,
Neural Cleanse, doi 10.1109/SP.2019.00031 (outlier among classes of an optimised trigger).
Differences: a bounded transformation of several families is scored by its success, where Neural
Cleanse minimises the size of a patch; all classes are learned at once; the result is compared with
reference networks.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from robustkd.evaluation.audit.evidence import Evidence, Member, Subject
from robustkd.evaluation.audit.outliers import smallest, student_outlier
from robustkd.evaluation.audit.search import FAMILIES
from robustkd.student.families.search import led_shares

LEAST_SPREAD = 0.05
"""Smallest standard deviation over classes: smaller differences of success mean nothing."""


def led_share(subject: Subject) -> Evidence:
    """Compare the success of learned transformations with that on the reference networks."""
    images, labels = subject.held_out()
    shares = led_shares(
        [subject.network, *subject.references],
        subject.found,
        images,
        labels,
        held_out=subject.effort.held_out,
        seed=subject.seed,
        classes=subject.classes,
    )
    return compared(shares[0], shares[1:])


def compared(
    own: Float[Tensor, "strengths families classes"],
    beside: Float[Tensor, "references strengths families classes"],
) -> Evidence:
    """Test the shares of a network beside those of references, of which there may be none."""
    excess = own.mean(0)
    if len(beside):
        excess = excess - beside.mean((0, 1))
    outliers = [student_outlier(values, spread=LEAST_SPREAD) for values in excess.tolist()]
    best = smallest(outliers)
    details = {"families": list(FAMILIES), "shares": own.tolist(), "references": beside.tolist()}
    if best is None:
        family, target = divmod(int(excess.argmax()), excess.shape[1])
        member = _member(own, beside, family, target)
        return Evidence(None, None, "too few classes to compare", details=details, member=member)
    family, (suspect, p_value) = best
    member = _member(own, beside, family, suspect)
    said = f"{member.family} lead {member.share:.0%} of the images of other classes to this class"
    if member.beside is not None:
        said += f", {member.beside:.0%} with references"
    return Evidence(p_value, suspect, said, tuple(excess[family].tolist()), details, member)


def _member(
    own: Float[Tensor, "strengths families classes"],
    beside: Float[Tensor, "references strengths families classes"],
    family: int,
    target: int,
) -> Member:
    """Describe the most successful strength of a family towards a class."""
    strength = int(own[:, family, target].argmax())
    return Member(
        strength,
        FAMILIES[family],
        target,
        float(own[strength, family, target]),
        float(beside[:, strength, family, target].mean()) if len(beside) else None,
    )
