"""Types that all statistics of the audit share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import DataSource, Images, Labels
from robustkd.evaluation.audit.effort import Effort
from robustkd.evaluation.audit.references import References
from robustkd.evaluation.audit.search import halves, held_out_images
from robustkd.student.families.search import LearnedFamilies, led_shares
from robustkd.training.inference import AT_ONCE, batch_size_for


@dataclass(frozen=True)
class Member:
    """Place of one learned transformation.

    Attributes:
        strength: Index of the strength.
        family: Name of the family.
        target: Index of the class to which it moves images.
        share: Share of held-out images of other classes that it moves there.
        beside: Mean of this share over the references; None without references.
    """

    strength: int
    family: str
    target: int
    share: float
    beside: float | None


@dataclass(frozen=True)
class Evidence:
    """Result of one statistic.

    Attributes:
        p_value: Probability of a result at least as extreme under the null hypothesis of the
            statistic, which describes networks without a backdoor; corrected for the number of
            classes if the statistic compares them. None if the statistic cannot be computed for
            this network.
        suspect: Index of the suspected class; None if the statistic names none.
        said: What was found, in a few words.
        scores: Value of each class; empty if the statistic has none.
        details: Further measurements, as JSON values.
        member: Learned transformation that stands out most, if the statistic is about one.
        longer_helps: Whether a longer audit may compute the statistic, if it has no p-value.
    """

    p_value: float | None
    suspect: int | None
    said: str
    scores: tuple[float, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    member: Member | None = None
    longer_helps: bool = False

    def record(self) -> dict[str, object]:
        """Return the evidence as JSON values."""
        return {**asdict(self), "scores": list(self.scores), "details": dict(self.details)}


@dataclass(frozen=True)
class Subject:
    """Input of a statistic: the network under audit, clean images and reference networks.

    Attributes:
        network: A frozen copy of the network in eval mode.
        data: Clean labelled images.
        references: Networks trained from labels alone on the same data; possibly none.
        found: Transformations that were learned against the network.
        effort: How much is computed.
        seed: Seed of everything random.
        threshold: Largest p-value of one statistic that makes the network suspicious; see
            :func:`robustkd.evaluation.audit.verdict.threshold`.
    """

    network: nn.Module
    data: DataSource
    references: References
    found: LearnedFamilies
    effort: Effort
    seed: int
    threshold: float

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    def held_out(self) -> tuple[Images, Labels]:
        """Return random labelled validation images, always the same ones; fewer large ones."""
        return self._held_out

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Divide images, or values of them, into parts that pass a network at once."""
        parts: tuple[Tensor, ...] = values.split(batch_size_for(self.data.image_shape, AT_ONCE))
        return parts

    @cached_property
    def shares(self) -> Float[Tensor, "strengths families classes"]:
        """Shares of images that each transformation moves, on the half that chooses among them.

        See :func:`robustkd.student.families.search.led_shares`.
        """
        choosing, _ = halves(*self.held_out())
        shares: Tensor = led_shares(
            [self.network],
            self.found,
            *choosing,
            held_out=self.effort.held_out,
            seed=self.seed,
            classes=self.classes,
            recognised_by=self.references.networks,
        )[0]
        return shares

    @cached_property
    def _held_out(self) -> tuple[Images, Labels]:
        return held_out_images(self.data, self.effort, device_of(self.network))
