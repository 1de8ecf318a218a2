"""Clean accuracy, attack success rate and robust accuracy of a model under one trigger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypedDict

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import apply_trigger, check_function, check_target, victims
from robustkd.core.types import DataSource, Trigger
from robustkd.core.usual_state import usual_state
from robustkd.training.inference import check_finite, predict
from robustkd.training.metrics import Proportion, accuracy, attack_success, robust_accuracy
from robustkd.training.trial import check_classifier


class Figures(TypedDict):
    """Measurements as keyword arguments of :class:`robustkd.report.results.ResultRow`."""

    acc: float
    asr: float | None
    ra: float | None
    base: float | None
    n_acc: int
    n_asr: int | None


@dataclass(frozen=True)
class Measured:
    """Measurements of a model on the test split.

    Attributes:
        acc: Clean accuracy.
        asr: Attack success rate: share of triggered images of other classes that are classified
            as the target class, or as the next class of each if this is the target; None without a
            trigger.
        ra: Robust accuracy: share of the same images that are classified correctly; None without
            a trigger.
        base: Share of the same images, without the trigger, that are classified as the target
            class, or as the next class of each. An attack success rate below this share is no
            evidence of an attack. None without a trigger.
    """

    acc: Proportion
    asr: Proportion | None = None
    ra: Proportion | None = None
    base: Proportion | None = None

    def fields(self) -> Figures:
        """Return the values under their names in :class:`robustkd.report.results.ResultRow`."""
        return {
            "acc": self.acc.value,
            "asr": self.asr.value if self.asr else None,
            "ra": self.ra.value if self.ra else None,
            "base": self.base.value if self.base else None,
            "n_acc": self.acc.n,
            "n_asr": self.asr.n if self.asr else None,
        }


@usual_state
def measure(
    model: nn.Module, data: DataSource, *, trigger: Trigger | None = None, target: Target = 0
) -> Measured:
    """Measure a model on the test split.

    Args:
        model: Any classifier of images in [0, 1].
        data: Source of the test images.
        trigger: Trigger of the attack; None if it is unknown.
        target: Target class of the attack, or ``next`` for the next class of each image; ignored
            without a trigger.

    Returns:
        Proportions with the number of images that each is based on.

    Raises:
        UsageError: If ``model`` does not map the images to logits of the classes, ``target`` is not
            a class, no test image is of another one, or ``trigger`` is no function, or does not
            return images like those that it is given.
        InputError: If pixels are not in [0, 1], labels are no classes, or an output of the model
            is not finite.
    """
    if trigger is not None:
        check_function(trigger)
    check_classifier(model, data, name="the model", splits=("test",))
    if trigger is not None:
        check_target(target, data)
    clean, labels = predict(model, data, "test")
    check_finite(clean, "test images")
    acc = accuracy(clean, labels)
    if trigger is None:
        return Measured(acc)
    if not bool(victims(labels, target, len(data.classes)).any()):
        if isinstance(target, str):
            raise UsageError(
                f"no test image of {data.name} has a next class; expected images with labels of at "
                "least two classes"
            )
        raise UsageError(
            f"all test images of {data.name} are of the target class {data.classes[target]!r}; "
            "expected images of other classes, which the attack success rate counts"
        )
    logits, labels = predict(model, data, "test", transform=partial(apply_trigger, trigger))
    check_finite(logits, "triggered images")
    return Measured(
        acc,
        attack_success(logits, labels, target=target),
        robust_accuracy(logits, labels, target=target),
        attack_success(clean, labels, target=target),
    )
