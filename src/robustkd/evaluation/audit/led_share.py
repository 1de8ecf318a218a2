r"""Led share: targeted universal transformations, beside reference networks.

For every family f of transformations (see :mod:`robustkd.evaluation.audit.search`) and class k, a
transformation is learned that moves any image to k. With the share :math:`a_{fk}` of held-out
images of other classes that it moves, averaged over strengths, and the same share
:math:`b_{rfk}` of each reference network r with the transformations that were learned against *it*,
the statistic of a family is the outlier among classes of

.. math:: d_{fk} = a_{fk} - \frac{1}{R} \sum_r b_{rfk}

What moves images of all networks is a weakness of the data; what moves those of this network alone
was learned from something else than the data. Without references, :math:`d_{fk} = a_{fk}`.

Null distribution: the :math:`d_{fk}` of one family are normal with one mean over classes; the
deleted residual of the largest one has Student's distribution
(:func:`robustkd.evaluation.audit.outliers.student_outlier`). Its standard deviation is at least
0.05, and at least that of the references, estimated from their differences. Bonferroni over classes
and families.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Wang et al. 2019,
Neural Cleanse, doi 10.1109/SP.2019.00031 (outlier among classes of an optimised trigger).
Differences: a bounded transformation of several families is scored by its success, where Neural
Cleanse minimises the size of a patch; all classes are learned at once; the result is compared with
reference networks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import smallest, student_outlier
from robustkd.evaluation.audit.search import FAMILIES, led_shares

LEAST_SPREAD = 0.05
"""Smallest standard deviation over classes: smaller differences of success mean nothing."""


def led_share(subject: Subject) -> Evidence:
    """Compare the success of learned transformations with that on the reference networks."""
    images, labels = subject.held_out()
    counted = {
        "held_out": subject.effort.held_out,
        "seed": subject.seed,
        "classes": subject.classes,
    }
    all_networks = [subject.network, *subject.references]
    of_model = led_shares(all_networks, subject.found, images, labels, **counted)
    of_references = [
        led_shares([network], found, images, labels, **counted)[0]
        for network, found in zip(subject.references, subject.reference_found, strict=True)
    ]
    own = of_model[0].mean(0)
    beside = torch.stack([shares.mean(0) for shares in of_references]) if of_references else None
    excess = own if beside is None else own - beside.mean(0)
    outliers = [
        student_outlier(values, spread=max(spread, LEAST_SPREAD), freedom=freedom)
        for values, (spread, freedom) in zip(excess.tolist(), _spreads(beside), strict=True)
    ]
    best = smallest(outliers)
    details = {
        "families": list(FAMILIES),
        "strengths": list(subject.effort.strengths),
        "shares": of_model[0].tolist(),
        "transferred": of_model[1:].tolist(),
        "references": [shares.tolist() for shares in of_references],
    }
    if best is None:
        return Evidence(None, None, "too few classes to compare", details=details)
    place, (suspect, p_value) = best
    said = f"{FAMILIES[place]} lead {_most(of_model[0], place, suspect):.0%} of images there"
    if of_references:
        theirs = [_most(shares, place, suspect) for shares in of_references]
        said += f", {sum(theirs) / len(theirs):.0%} with references"
    return Evidence(p_value, suspect, said, tuple(excess[place].tolist()), details)


def _most(shares: Tensor, family: int, suspect: int) -> float:
    """Return the success at the strength at which it is highest."""
    return float(shares[:, family, suspect].max())


def _spreads(beside: Tensor | None) -> list[tuple[float, int]]:
    r"""Standard deviation of the difference of a network and the mean of R references, by family.

    It is :math:`s \sqrt{1 + 1 / R}`, where s is the standard deviation of one network around the
    mean of a class after its own mean over classes is removed; with its degrees of freedom.
    """
    if beside is None or len(beside) < 2:
        return [(0.0, 0)] * len(FAMILIES)
    count, _, classes = beside.shape
    centred = beside - beside.mean(2, keepdim=True)
    residuals = centred - centred.mean(0)
    freedom = (count - 1) * (classes - 1)
    variances = residuals.square().sum((0, 2)) / freedom
    return [(math.sqrt(float(v) * (1 + 1 / count)), freedom) for v in variances]
