r"""Led share: targeted universal transformations, beside reference networks.

For every family f of transformations (see :mod:`robustkd.evaluation.audit.search`), strength s and
class k, a transformation is learned that moves any image to k for the audited network, *while the
reference networks recognise the image*. Its share

.. math:: a_{sfk} = \frac{1}{R} \sum_r P\big(\text{the network says } k
    \text{ and reference } r \text{ says the label}\big)

is measured on held-out images of other classes. What moves the images of all networks is a weakness
of the data; what moves those of this network alone was learned from something else than the data.

Networks without a backdoor differ from each other as well. The same search *against each
reference*, with the other references beside it, shows how far: :math:`c_{sf}` is the largest share
of any class and any reference.

Test: one half of the held-out images chooses the transformation with the largest
:math:`a_{sfk} - c_{sf}`. On the other half, the null hypothesis is that its share is at most
:math:`c_{sf} + 0.2`; the p-value is that of the one-sided binomial test. The 0.2 stand for the
difference between networks, which the test cannot know from a few references.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Wang et al. 2019,
Neural Cleanse, doi 10.1109/SP.2019.00031 (search of a trigger for each class). Differences: a
bounded transformation of several families is scored by its success, where Neural Cleanse minimises
the size of a patch and looks for an outlier among the classes; all classes are learned at once;
reference networks are part of the search and give the scale.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from robustkd.core.types import Images, Labels
from robustkd.evaluation.audit.evidence import Evidence, Member, Subject
from robustkd.evaluation.audit.search import FAMILIES
from robustkd.student.families import members_of
from robustkd.student.families.search import images_at_once, led_shares

LED = "the references are led as well"
"""What is said if the references are led too far by every family at every strength."""
ALONE = "no reference networks to compare with"
"""What is said without references."""
MARGIN = 0.2
"""Share of images by which networks without a backdoor may differ from the references."""


class Place(NamedTuple):
    """Indices of one learned transformation."""

    strength: int
    family: int
    target: int


class Moved(NamedTuple):
    """Shares of held-out images of other classes, by one transformation.

    Attributes:
        share: Share that the audited network assigns to the target.
        beside: Mean of this share over the references.
        recognised: Share that the audited network assigns to the target and the references to
            their label, as a mean over the references.
        images: Number of images.
    """

    share: float
    beside: float
    recognised: float
    images: int


def led_share(subject: Subject) -> Evidence:
    """Test whether a transformation leads the network and not the references."""
    ceiling = subject.references.led
    if ceiling is None:
        return Evidence(None, None, ALONE)
    images, labels = subject.held_out()
    half = (len(labels) + 1) // 2
    shares = led_shares(
        [subject.network],
        subject.found,
        images[:half],
        labels[:half],
        held_out=subject.effort.held_out,
        seed=subject.seed,
        classes=subject.classes,
        recognised_by=subject.references.networks,
    )[0]
    details = {
        "families": list(FAMILIES),
        "shares": shares.tolist(),
        "references led": ceiling.tolist(),
    }
    place = furthest(shares, ceiling)
    if place is None:
        return Evidence(None, None, LED, details=details)
    moved = _moved(subject, place, images[half:], labels[half:])
    member = Member(place.strength, FAMILIES[place.family], place.target, moved.share, moved.beside)
    known = float(ceiling[place.strength, place.family])
    said = (
        f"{member.family}: {moved.share:.0%} of the images of other classes move to this class, "
        f"{moved.beside:.0%} with references"
    )
    return Evidence(
        p_value=binomial_p_value(moved.recognised, moved.images, known + MARGIN),
        suspect=place.target,
        said=said,
        scores=tuple((shares[place.strength, place.family] - known).tolist()),
        details={**details, "recognised": moved.recognised, "images": moved.images},
        member=member,
    )


def furthest(
    shares: Float[Tensor, "strengths families classes"],
    ceiling: Float[Tensor, "strengths families"],
) -> Place | None:
    """Return the transformation whose share exceeds that of the references most.

    Families count at the strengths at which a network can be led further than the references by
    the margin; None if there is none.
    """
    counts = ceiling + MARGIN < 1
    if not bool(counts.any()):
        return None
    excess = torch.where(counts, ceiling, torch.inf)[:, :, None].neg() + shares
    flat = int(excess.argmax())
    cell, target = divmod(flat, shares.shape[2])
    return Place(*divmod(cell, shares.shape[1]), target)


def binomial_p_value(share: float, count: int, null: float) -> float:
    """Return the probability of a share at least as large, if the probability is at most ``null``.

    >>> binomial_p_value(0.9, 100, 0.5) < 1e-9, binomial_p_value(0.5, 100, 0.5) > 0.5
    (True, True)
    """
    successes = math.floor(share * count + 1e-6)
    return float(stats.binom.sf(successes - 1, count, null))


@torch.no_grad()
def _moved(subject: Subject, place: Place, images: Images, labels: Labels) -> Moved:
    """Measure one transformation on all images of other classes."""
    family = members_of(subject.found[place.strength])[place.family]
    others = labels != place.target
    images, labels = images[others], labels[others]
    sums = torch.zeros(3)
    at_once = images_at_once((images.shape[1], images.shape[2], images.shape[3]))
    for some, known in zip(images.split(at_once), labels.split(at_once), strict=True):
        seen = family(some, torch.full_like(known, place.target))
        hit = subject.network(seen).argmax(1) == place.target
        said = torch.stack([each(seen).argmax(1) for each in subject.references.networks])
        beside = (said == place.target).float().mean(0)
        recognised = hit * (said == known).float().mean(0)
        sums += torch.stack([hit.sum(), beside.sum(), recognised.sum()]).cpu()
    share, beside_share, recognised_share = (sums / max(1, len(labels))).tolist()
    return Moved(share, beside_share, recognised_share, len(labels))
