r"""Led share: targeted universal transformations, beside reference networks.

For every family f of transformations (see :mod:`robustkd.evaluation.audit.search`), strength s and
class k, a transformation is learned that moves any image to k for the audited network, *while the
reference networks recognise the image*. Its share is

.. math:: a_{sfk} = P\big(\text{the network says } k \text{ and the reference says the label}
    \;\big|\; \text{both say the label of the image as it is}\big)

over held-out images of other classes and all references. What moves the images of all networks is a
weakness of the data; what moves those of this network alone cannot have been learned from these
data. Images that the network does not recognise do not count: a network that knows little says many
of its classes by mistake.

Networks without a backdoor differ from each other as well, and two measurements show how far.
:math:`c_{sf}` is the largest share of any reference, in the same search *against this reference*
with the other references beside it, for the class that is led furthest. :math:`b_{sf}` is the share
of the audited network for the class that is led third furthest (of two classes, for the other one).
Networks of another kind than the references are led further than these, but towards many classes; a
backdoor leads towards its target, or towards two targets.

Test: one half of the held-out images chooses the transformation with the largest
:math:`a_{sfk} - d_{sf}`, where :math:`d_{sf} = \max(c_{sf}, 1.5\, b_{sf})`. On the other half, the
null hypothesis is that its share is at most

.. math:: \max\Big(c_{sf} + \sqrt{0.2^2 + (\hat c_{sf} - c_{sf})^2},\;
    1.5\, b_{sf} + \sqrt{0.2^2 + 1.5^2 (\hat b_{sf} - b_{sf})^2}\Big) + e

with the shares of this half, where :math:`\hat c` and :math:`\hat b` are the upper ends of their
99.8 % Wilson intervals; the p-value is that of the one-sided binomial test, with the mean number of
images over the references. The factor of 1.5 allows for classes that are easier to reach than
others, and the margin of 0.2 for differences between networks, which a few references cannot show.
The root adds the margin and the error of the measured shares, which are independent; with few
images, the error is the larger part. Networks that know less than the references are led further
without a backdoor, so :math:`e` is the share of images that the references recognise on average,
less that of the audited network, and at least 0. All of this was chosen on other networks than
those of the calibration.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Wang et al. 2019,
Neural Cleanse, doi 10.1109/SP.2019.00031 (search of a trigger for each class). Differences: a
bounded transformation of several families is scored by its success, where Neural Cleanse minimises
the size of a patch and compares it with the median of the classes; all classes are learned at once;
reference networks are part of the search and give the scale together with the other classes. The
sum of independent errors by their squares is that of Newcombe 1998, doi
10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I (method 10).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from robustkd.core.statistics import wilson
from robustkd.core.types import Images, Labels
from robustkd.evaluation.audit.evidence import Evidence, Member, Subject
from robustkd.evaluation.audit.moved import Moved, count_moved
from robustkd.evaluation.audit.search import FAMILIES, halves
from robustkd.student.families import members_of

LED = "the references are led as well"
"""What is said if the references are led so far that no network could be led further.

A longer search may find what the references do not follow.
"""
OTHERS_LED = "the model is led towards other classes as well"
"""What is said if the model is led towards other classes so far that no class could stand out."""
ALONE = "no reference networks to compare with"
"""What is said without references."""
FEW = "too few validation images that the model and the references recognise"
"""What is said if no result of the test could make the network suspicious."""
UNSURE = "the references know too little of the task"
"""What is said if the references hardly recognise more than a guess of one class would."""
MARGIN = 0.2
"""Share of images by which networks without a backdoor may differ from the references."""
EASIER = 1.5
"""How many times the share of another class a class may have without a backdoor."""
_CONFIDENCE = 0.998
"""Of the intervals of measured shares, so that the upper end is exceeded in one of 1,000 cases."""
_TARGETS = 2
"""Number of classes towards which a backdoor may lead."""


class Place(NamedTuple):
    """Indices of one learned transformation."""

    strength: int
    family: int
    target: int


class Chosen(NamedTuple):
    """Transformation that stands out most, on the images that choose it.

    Attributes:
        place: The transformation.
        other: Class that the same family leads third furthest.
        shares: Shares of all transformations.
        ceiling: Share beyond which a network without a backdoor is not led, by strength and family.
    """

    place: Place
    other: int
    shares: Float[Tensor, "strengths families classes"]
    ceiling: Float[Tensor, "strengths families"]


def led_share(subject: Subject) -> Evidence:
    """Test whether a transformation leads the network and not the references."""
    ceilings = subject.references.led
    if ceilings is None:
        ceilings = torch.zeros(2, len(subject.found), len(FAMILIES))
    _, testing = halves(*subject.held_out())
    place, other, shares, ceiling = _choose(subject.shares, ceilings[0])
    family = FAMILIES[place.family]
    moved = _moved(subject, place, *testing)
    theirs = float(ceilings[1, place.strength, place.family])
    own = _moved(subject, place._replace(target=other), *testing)
    null = moved.shortfall + max(
        highest(theirs, subject.references.images), highest(own.share, own.known, EASIER)
    )
    share, beside = (each / max(1, moved.images) for each in (moved.led, moved.beside))
    alone = not subject.references.networks
    member = Member(place.strength, family, place.target, share, None if alone else beside)
    details = {
        "families": list(FAMILIES),
        "shares": shares.tolist(),
        "references led": ceilings.tolist(),
        "other class": {"class": other, "share": own.share, "images": own.known},
        "reference share": theirs,
        "reference images": subject.references.images,
        "recognised": moved.share,
        "images": moved.known,
        "shortfall": moved.shortfall,
    }
    trouble = ALONE
    if not alone:
        trouble = _trouble(moved, testing[1], theirs, own.share, null, subject.threshold)
    if trouble:
        helps = trouble == LED
        return Evidence(None, None, trouble, details=details, member=member, longer_helps=helps)
    return Evidence(
        binomial_p_value(moved.moved, moved.known, null),
        place.target,
        f"{family}: {share:.0%} of the images of other classes move to this class "
        f"(references: {beside:.0%}, by a search of their own {theirs:.0%})",
        tuple((shares - ceiling[:, :, None])[place.strength, place.family].tolist()),
        details,
        member,
    )


def _choose(
    shares: Float[Tensor, "strengths families classes"], led: Float[Tensor, "strengths families"]
) -> Chosen:
    """Choose the transformation whose share exceeds those of references and other classes most."""
    third, other = shares_of_other_classes(shares)
    ceiling = torch.maximum(led, EASIER * third)
    place = furthest(shares, ceiling)
    return Chosen(place, int(other[place.strength, place.family]), shares, ceiling)


def _trouble(
    moved: Moved, labels: Labels, theirs: float, own: float, null: float, threshold: float
) -> str:
    """Return why the test could not find evidence; empty if it could."""
    if unsure(moved.recognised, moved.images, labels):
        return UNSURE
    room = 1 - MARGIN - moved.shortfall
    if theirs >= room:
        return LED
    if EASIER * own >= room:
        return OTHERS_LED
    attainable = binomial_p_value(moved.known, moved.known, null)
    return "" if attainable <= threshold else FEW


def unsure(recognised: float, images: int, labels: Labels) -> bool:
    """Return whether references recognise hardly more images than a guess of one class would.

    A network that says one class for every image would recognise this class whatever is done to the
    image.

    Args:
        recognised: Number of images that a reference recognises, as a mean over the references.
        images: Number of the images.
        labels: Labels of all held-out images.
    """
    guess = int(labels.bincount().amax()) / len(labels) if len(labels) else 0.0
    return recognised < min(2 * guess, (1 + guess) / 2) * images


def shares_of_other_classes(
    shares: Float[Tensor, "strengths families classes"],
) -> tuple[Float[Tensor, "strengths families"], Int[Tensor, "strengths families"]]:
    """Return the share of the class that is led third furthest, and the class.

    Of two classes, it is the one that is led less.

    >>> shares_of_other_classes(torch.tensor([[[0.1, 0.9, 0.3, 0.2]]]))
    (tensor([[0.2000]]), tensor([[3]]))
    """
    ordered = shares.sort(dim=2, descending=True, stable=True)
    rank = min(_TARGETS, shares.shape[2] - 1)
    return ordered.values[:, :, rank], ordered.indices[:, :, rank]


def furthest(
    shares: Float[Tensor, "strengths families classes"],
    ceiling: Float[Tensor, "strengths families"],
) -> Place:
    """Return the transformation whose share exceeds the ceiling most."""
    flat = int((shares - ceiling[:, :, None]).argmax())
    cell, target = divmod(flat, shares.shape[2])
    return Place(*divmod(cell, shares.shape[1]), target)


def highest(share: float, images: float | int, factor: float | int = 1) -> float:
    """Return the share up to which a network without a backdoor may be led.

    Args:
        share: Measured share of the references, or of another class.
        images: Number of images on which it was measured; not always whole.
        factor: How many times this share a network without a backdoor may be led.

    >>> round(highest(0.2, 10_000), 2), round(highest(0.2, 40), 2)
    (0.4, 0.51)
    """
    upper = wilson(share, max(1, math.floor(images)), _CONFIDENCE)[1]
    return factor * share + math.hypot(MARGIN, factor * (upper - share))


def binomial_p_value(successes: float | int, count: float | int, null: float) -> float:
    """Return the probability of as many successes, if each has at most the probability ``null``.

    Means over references need not be whole numbers; they are rounded so that the value is larger.

    >>> binomial_p_value(90, 100, 0.5) < 1e-9, binomial_p_value(50, 100, 0.5) > 0.5
    (True, True)
    """
    return float(stats.binom.sf(math.floor(successes) - 1, math.ceil(count), min(1.0, null)))


def _moved(subject: Subject, place: Place, images: Images, labels: Labels) -> Moved:
    family = members_of(subject.found[place.strength])[place.family]
    return count_moved(
        subject.network, subject.references.networks, family, place.target, images, labels
    )
