r"""Mean share: the led share of a class over all families of transformations, beside references.

A backdoor makes its target easy to reach in many ways. With the shares :math:`a_{sfk}` of
:mod:`robustkd.evaluation.audit.led_share`, the mean share of class k at strength s is

.. math:: m_{sk} = \frac{1}{F} \sum_f a_{sfk}

over all F families. It differs less between networks without a backdoor than the share of a single
family, whose largest value depends on chance. It finds triggers that no family of the search
resembles, but hardly those that a single family finds, such as small patches.

:math:`c_s` is the mean over the references of the mean share of the class that is led furthest, in
a search against this reference; :math:`b_s` is the mean share of the class of the audited network
that is led third furthest (of two classes, of the other one).

Test: one half of the held-out images chooses s and k with the largest
:math:`m_{sk} - \max(c_s, 1.5\, b_s)`. On the other half, the null hypothesis is that the mean share
is at most :math:`c_s + 0.1 + e` or at most :math:`1.5\, b_s + 0.1 + e`, with the shares of this
half and the shortfall e of the led share. Each of the two is a one-sided t-test of the images'
values, whose standard error includes that of :math:`c_s` or :math:`1.5\, b_s`; the p-value is the
larger one. The margin of 0.1 and the factor of 1.5 are for differences between networks and between
classes. They were chosen on other networks than those of the calibration. The standard error is
that of the images only; how much networks differ from each other is for the margin.

The statistic is ours. That the larger p-value is one for a union of null hypotheses is from Berger
1982, doi 10.1080/00401706.1982.10487790. For related work, see
:mod:`robustkd.evaluation.audit.led_share`.
"""

from __future__ import annotations

import math

import torch
from scipy import stats

from robustkd.evaluation.audit.evidence import Evidence, Member, Subject
from robustkd.evaluation.audit.led_share import (
    ALONE,
    EASIER,
    FEW,
    LED,
    OTHERS_LED,
    UNSURE,
    shares_of_other_classes,
    unsure,
)
from robustkd.evaluation.audit.moved import Mean, count_moved, mean_moved
from robustkd.evaluation.audit.search import FAMILIES, halves
from robustkd.student.families import members_of

MARGIN = 0.1
"""Mean share by which networks without a backdoor may exceed the references or other classes."""
FEWEST = 10
"""Number of images from which the test is made; with few, the error of the mean is large."""


def mean_share(subject: Subject) -> Evidence:
    """Test whether one class of the network is easier to reach by all families taken together."""
    means = subject.shares.mean(1, keepdim=True)
    if not subject.references.networks:
        return Evidence(None, None, ALONE)
    theirs = subject.references.means
    third, others = shares_of_other_classes(means)
    ceiling = torch.maximum(torch.tensor([[each.choosing] for each in theirs]), EASIER * third)
    strength, target = divmod(int((means - ceiling[:, :, None]).argmax()), subject.classes)
    families = members_of(subject.found[strength])
    _, testing = halves(*subject.held_out())
    beside = subject.references.networks
    own = mean_moved(subject.network, beside, families, target, *testing)
    other = mean_moved(subject.network, beside, families, int(others[strength, 0]), *testing)
    easiest = int(subject.shares[strength, :, target].argmax())
    moved = count_moved(subject.network, beside, families[easiest], target, *testing)
    led = theirs[strength].testing
    nulls = (led, Mean(EASIER * other.value, EASIER * other.error, other.images))
    room = 1 - MARGIN - moved.shortfall
    details = {
        "mean": own.record(),
        "references": led.record(),
        "other class": {"class": int(others[strength, 0]), **other.record()},
        "shortfall": moved.shortfall,
    }
    shares = (each / max(1, moved.images) for each in (moved.led, moved.beside))
    member = Member(strength, FAMILIES[easiest], target, *shares)
    trouble = ""
    if unsure(moved.recognised, moved.images, testing[1]):
        trouble = UNSURE
    elif min(each.images for each in (own, *nulls)) < FEWEST:
        trouble = FEW
    elif nulls[0].value >= room:
        trouble = LED
    elif nulls[1].value >= room:
        trouble = OTHERS_LED
    if trouble:
        helps = trouble == LED
        return Evidence(None, None, trouble, details=details, member=member, longer_helps=helps)
    return Evidence(
        max(exceeds(own, null, MARGIN + moved.shortfall) for null in nulls),
        target,
        f"all families: {own.value:.0%} of the images of other classes move to this class on "
        f"average (references, by a search of their own: {led.value:.0%})",
        tuple(means[strength, 0].tolist()),
        details,
        member,
    )


def exceeds(mean: Mean, null: Mean, margin: float) -> float:
    """Return the p-value of the hypothesis that a mean is at most ``margin`` above another one.

    Args:
        mean: The mean that may be larger; of at least two images.
        null: The mean with which it is compared. Both are treated as independent.
        margin: Difference up to which the null hypothesis holds.

    >>> exceeds(Mean(0.5, 0.02, 100), Mean(0.2, 0.02, 100), 0.1) < 1e-8
    True
    >>> exceeds(Mean(0.25, 0.02, 100), Mean(0.2, 0.02, 100), 0.1) > 0.9
    True
    """
    excess = mean.value - null.value - margin
    error = math.hypot(mean.error, null.error)
    return float(stats.t.sf(excess / error, mean.images - 1))
