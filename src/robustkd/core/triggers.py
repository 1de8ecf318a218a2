"""Checks of triggers and of their target classes, wherever they come from.

The target is one class, or the next class of each image, see :mod:`robustkd.core.targets`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.targets import NEXT, Target
from robustkd.core.types import UNLABELLED, DataSource, Images, Labels, Trigger
from robustkd.core.validation import check_whole

_ROUNDING = 1e-4
"""Distance from [0, 1] that rounding may give a pixel."""


def apply_trigger(trigger: Trigger, images: Images) -> Images:
    """Return images with a trigger, after checking what the trigger returns.

    Args:
        trigger: The trigger; it may be any function.
        images: N x C x H x W in [0, 1].

    Raises:
        UsageError: If the trigger is no function, or the result is not a tensor of the same shape
            and type, or has pixels that are not in [0, 1].
    """
    check_function(trigger)
    changed: object = trigger(images)
    if not isinstance(changed, Tensor):
        raise UsageError(f"the trigger returns {type(changed).__name__}; expected a tensor")
    if changed.shape != images.shape or changed.dtype != images.dtype:
        found, expected = (f"{tuple(x.shape)} and {x.dtype}" for x in (changed, images))
        raise UsageError(f"the trigger returns {found}; expected {expected}, as it was given")
    if not changed.numel():
        return changed
    low, high = (float(bound) for bound in changed.detach().aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise UsageError(
            f"the trigger returns pixels from {low:.4g} to {high:.4g}; expected pixels in [0, 1]"
        )
    return changed


def check_function(trigger: object) -> None:
    """Raise an error for a trigger that cannot be called.

    Raises:
        UsageError: If it cannot.
    """
    if not callable(trigger):
        raise UsageError(
            f"the trigger is of type {type(trigger).__name__}; expected a function of images, such "
            "as load_trigger returns"
        )


def wanted(labels: Labels, target: Target, classes: int) -> Labels:
    """Return the class that the attacker wants for each image.

    Args:
        labels: Labels of the images.
        target: Target of the attack.
        classes: Number of classes.

    Returns:
        Classes, as many as labels. An image without a label has no next class and stays unlabelled.

    >>> labels = torch.tensor([0, 1, 2, -1])
    >>> wanted(labels, "next", classes=3), wanted(labels, 1, classes=3)
    (tensor([ 1,  2,  0, -1]), tensor([1, 1, 1, 1]))
    """
    if isinstance(target, str):
        return torch.where(labels < 0, UNLABELLED, (labels + 1) % classes)
    return torch.full_like(labels, target)


def victims(labels: Labels, target: Target, classes: int) -> Bool[Tensor, " n"]:
    """Return which images have a label that is not already the class that the attacker wants.

    Args:
        labels: Labels of the images; images without a label are no victims.
        target: Target of the attack.
        classes: Number of classes.

    >>> labels = torch.tensor([0, 1, 2, -1])
    >>> victims(labels, "next", classes=3).tolist(), victims(labels, 1, classes=3).tolist()
    ([True, True, True, False], [True, False, True, False])
    """
    return (labels >= 0) & (labels != wanted(labels, target, classes))


def check_target(target: Target, data: DataSource) -> None:
    """Check that the target is the index of a class of the data, or the next class of each image.

    Raises:
        UsageError: If it is not; the message gives the range.
    """
    check_target_among(target, len(data.classes))


def check_target_among(target: Target, classes: int) -> None:
    """Check that the target is the index of one of some classes, or the next class of each image.

    Raises:
        UsageError: If it is not; the message gives the range.
    """
    if target == NEXT:
        return
    if isinstance(target, str):
        raise UsageError(f"target is {target!r}; expected a whole number, or {NEXT}")
    check_whole(target=target)
    if not 0 <= target < classes:
        raise UsageError(f"target class is {target}; expected 0 to {classes - 1}")


def check_one_target(target: Target, data: DataSource) -> int:
    """Return the target of an attack that has one target class, after checking it.

    Raises:
        UsageError: If it is the next class of each image, or not the index of a class of the data.
    """
    check_target(target, data)
    if isinstance(target, str):
        raise UsageError(
            f"target is {NEXT}, and this attack has one target class; expected 0 to "
            f"{len(data.classes) - 1}, or an attack that robustkd list shows with --target {NEXT}"
        )
    return target
