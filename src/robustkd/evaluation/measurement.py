"""Accuracy, attack success and robust accuracy of a model under one trigger."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustkd.attacks import Trigger
from robustkd.core.types import DataSource
from robustkd.training.inference import predict
from robustkd.training.metrics import Proportion, accuracy, attack_success, robust_accuracy


@dataclass(frozen=True)
class Measured:
    """What a model does on the test split.

    Attributes:
        acc: Clean accuracy.
        asr: Share of triggered images, those of the target class left out, sent to the target;
            None without a trigger.
        ra: Share of the same images given their true label; None without a trigger.
        base: Share of the same images sent to the target with no trigger on them: below it no
            success rate can be told from none; None without a trigger.
    """

    acc: Proportion
    asr: Proportion | None = None
    ra: Proportion | None = None
    base: Proportion | None = None

    def fields(self) -> dict[str, float | int | None]:
        """The figures under the keys of ``results.json``."""
        return {
            "acc": self.acc.value,
            "asr": self.asr.value if self.asr else None,
            "ra": self.ra.value if self.ra else None,
            "base": self.base.value if self.base else None,
            "n_acc": self.acc.n,
            "n_asr": self.asr.n if self.asr else None,
        }


def measure(
    model: nn.Module, data: DataSource, *, trigger: Trigger | None = None, target: int = 0
) -> Measured:
    """Measure a model on the test split.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        trigger: What an attacker adds; None where it is not known.
        target: Class that the attacker wants.

    Raises:
        UsageError: If ``target`` is no class of the model.
    """
    clean, labels = predict(model, data, "test")
    acc = accuracy(clean, labels)
    if trigger is None:
        return Measured(acc)
    logits, labels = predict(model, data, "test", transform=trigger)
    return Measured(
        acc,
        attack_success(logits, labels, target=target),
        robust_accuracy(logits, labels, target=target),
        attack_success(clean, labels, target=target),
    )
