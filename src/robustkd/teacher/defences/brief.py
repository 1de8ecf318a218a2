"""Brief forms of defences, from which a dry run estimates the time of a training batch."""

from __future__ import annotations

from dataclasses import fields, replace

from robustkd.teacher.defences.base import Defence
from robustkd.teacher.defences.tuning import Tuning


def brief(defence: Defence) -> Defence:
    """Return a defence with the same work in each training batch and as few batches as possible.

    Each :class:`robustkd.teacher.defences.tuning.Tuning` has one epoch, and the fields with the
    metadata :data:`robustkd.teacher.defences.base.ONCE` are 1.

    Args:
        defence: A defence of the registry.
    """
    short: dict[str, object] = {}
    for field in fields(defence):
        value = getattr(defence, field.name)
        if isinstance(value, Tuning):
            short[field.name] = replace(value, epochs=1)
        elif "brief" in field.metadata:
            short[field.name] = field.metadata["brief"]
    return replace(defence, **short)
