"""Trial of a family that users have added, before anything is trained against it."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from robustkd.core.devices import forked_generators
from robustkd.core.errors import UsageError
from robustkd.student.families.bounded import Family, Shape

_ROUNDING = 1e-4
"""Distance from [0, 1] that rounding may give a pixel."""


def check_family(family: object, name: str, image: Shape) -> nn.Module:
    """Return a family after trying it on two images.

    Without the trial, a change that leaves [0, 1] would be trained against in silence, as would one
    through which no gradient passes, and values that are not finite would look like those of the
    teacher or of a learning rate that is too large.

    Args:
        family: What the row of the table has made.
        name: Name of the row, for messages.
        image: Channels, height and width of the images.

    Raises:
        UsageError: If it is no module with the methods of a family, or does not map images to
            images in [0, 1], of the same shape and type, through which gradients reach its members.
    """
    if not isinstance(family, nn.Module) or not isinstance(family, Family):
        kind = type(family).__name__
        raise UsageError(
            f"family {name!r} is of type {kind}; expected a module with advance, bound and forget, "
            "such as robustkd.student.families.Bounded"
        )
    images = torch.linspace(0, 1, 2 * math.prod(image)).view(2, *image)
    given = images.clone()
    # The trial changes neither the family nor the numbers that are drawn after it.
    with torch.enable_grad(), forked_generators(torch.device("cpu")):
        changed: object = copy.deepcopy(family)(given, torch.zeros(2, dtype=torch.int64))
    if not isinstance(changed, Tensor):
        raise UsageError(
            f"family {name!r} returns {type(changed).__name__}; expected a tensor of images"
        )
    if changed.shape != images.shape or changed.dtype != images.dtype:
        found, expected = (f"{tuple(x.shape)} and {x.dtype}" for x in (changed, images))
        raise UsageError(f"family {name!r} returns {found}; expected {expected}, as it was given")
    low, high = (float(bound) for bound in changed.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"family {name!r} returns pixels that are not finite")
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise UsageError(
            f"family {name!r} returns pixels from {low:.4g} to {high:.4g}; expected pixels in "
            "[0, 1]: let it end with clamp(0, 1)"
        )
    if not torch.equal(given, images):
        raise UsageError(
            f"family {name!r} changes the images that it is given; expected new ones: let it "
            "change images.clone()"
        )
    if not changed.requires_grad:
        raise UsageError(
            f"no gradient passes through family {name!r} to its members, so it cannot be learned; "
            "expected a change that is differentiable in its parameters"
        )
    return family
