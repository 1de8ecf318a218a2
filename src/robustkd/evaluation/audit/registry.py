"""Statistics of the audit; a new one is a function in a file of its own and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robustkd.evaluation.audit.activation_change import activation_change
from robustkd.evaluation.audit.channel_lipschitz import channel_lipschitz
from robustkd.evaluation.audit.effort import Effort
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.feature_shift import feature_shift
from robustkd.evaluation.audit.last_layer import last_layer
from robustkd.evaluation.audit.led_share import led_share
from robustkd.evaluation.audit.max_margin import max_margin
from robustkd.evaluation.audit.mean_share import mean_share
from robustkd.evaluation.audit.neuron_noise import neuron_noise


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes:
        compute: Function of the subject.
        summary: Description in one line.
        counts: Whether the verdict uses it; decided by the committed calibration.
        slow: Whether it takes long; the quick audit leaves it out if the verdict does not use it.
    """

    compute: Callable[[Subject], Evidence]
    summary: str
    counts: bool = False
    slow: bool = False


STATISTICS: dict[str, Statistic] = {
    "led share": Statistic(
        led_share,
        "success of learned universal transformations, beside references",
        counts=True,
        slow=True,
    ),
    "mean share": Statistic(
        mean_share,
        "success of all learned transformations of a class together, beside references",
        counts=True,
        slow=True,
    ),
    "max margin": Statistic(
        max_margin, "largest margin of each class over all images (MM-BD)", slow=True
    ),
    "feature shift": Statistic(feature_shift, "common part of the change of features", slow=True),
    "neuron noise": Statistic(
        neuron_noise, "predictions under noise on BatchNorm (BAN)", slow=True
    ),
    "last layer": Statistic(last_layer, "mean weight of each class in the last layer"),
    "activation change": Statistic(
        activation_change, "smallest change of the features to each class (TAC)"
    ),
    "channel Lipschitz": Statistic(channel_lipschitz, "channels that amplify most (CLP)"),
}
"""Statistics by name, in the order of the report."""


def statistics_of(effort: Effort) -> dict[str, Statistic]:
    """Return the statistics that an audit of an effort computes."""
    return {
        name: each
        for name, each in STATISTICS.items()
        if each.counts or not (effort.brief and each.slow)
    }


COUNTED = frozenset(name for name, each in STATISTICS.items() if each.counts)
"""Names of the statistics that the verdict uses."""
