"""Check of what an attack returns, before it is stored or measured."""

from __future__ import annotations

import json
import math

import torch
from torch import nn

from robustkd.attacks.base import Backdoored
from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import apply_trigger


def check_made(
    made: object, *, attack: str, target: Target, image_shape: tuple[int, int, int]
) -> Backdoored:
    """Return the result of an attack after checking that it can be stored and measured.

    An attack that users have added may return anything. Without the check, a trigger that changes
    its input would spoil what is measured on the images afterwards, and another target would be
    measured in place of the one that was asked for.

    Args:
        made: What the attack has returned.
        attack: Name of the attack's class, for messages.
        target: The target that it was given.
        image_shape: Channels, height and width of the images.

    Raises:
        UsageError: If it is no :class:`Backdoored` with a network, that target, a record that JSON
            can hold, and triggers that map images to images and do not change their input.
    """
    if not isinstance(made, Backdoored):
        raise UsageError(
            f"{attack} returns {type(made).__name__}; expected robustkd.attacks.Backdoored"
        )
    if not isinstance(made.teacher, nn.Module):
        kind = type(made.teacher).__name__
        raise UsageError(f"{attack} returns a teacher of type {kind}; expected an nn.Module")
    known = isinstance(made.target, int | str) and not isinstance(made.target, bool)
    if not known or made.target != target:
        raise UsageError(
            f"{attack} returns the target {made.target!r}; expected {target!r}, as it was given"
        )
    if not isinstance(made.others, tuple) or not all(
        isinstance(each, tuple) and len(each) == len(("trigger", "target")) for each in made.others
    ):
        raise UsageError(f"{attack} returns others that are no tuple of (trigger, target) pairs")
    try:
        json.dumps(dict(made.record))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{attack} returns a record that cannot be written as JSON: {error}; expected numbers, "
            "texts, booleans, lists and mappings of them"
        ) from error
    ramp = torch.linspace(0, 1, 2 * math.prod(image_shape), device=device_of(made.teacher))
    images = ramp.view(2, *image_shape)
    for trigger, _target in made.backdoors:
        given = images.clone()
        try:
            apply_trigger(trigger, given)
        except UsageError as error:
            raise UsageError(f"{attack}: {error}") from error
        if not torch.equal(given, images):
            raise UsageError(
                f"the trigger of {attack} changes the images that it is given; expected new ones: "
                "let it change images.clone()"
            )
    return made
