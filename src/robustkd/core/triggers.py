"""Checks of triggers and of their target classes, wherever they come from."""

from __future__ import annotations

from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Images, Trigger
from robustkd.core.validation import check_whole

_ROUNDING = 1e-4
"""Distance from [0, 1] that rounding may give a pixel."""


def apply_trigger(trigger: Trigger, images: Images) -> Images:
    """Return images with a trigger, after checking what the trigger returns.

    Args:
        trigger: The trigger; it may be any function.
        images: N x C x H x W in [0, 1].

    Raises:
        UsageError: If the result is not a tensor of the same shape and type, or has pixels that are
            not in [0, 1].
    """
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


def check_target(target: int, data: DataSource) -> None:
    """Check that the target is the index of a class of the data.

    Raises:
        UsageError: If it is not; the message gives the range.
    """
    check_whole(target=target)
    if not 0 <= target < len(data.classes):
        raise UsageError(f"target class is {target}; expected 0 to {len(data.classes) - 1}")
