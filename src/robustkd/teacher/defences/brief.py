"""Brief forms of defences, from which a dry run estimates the time of a training batch."""

from __future__ import annotations

from dataclasses import fields, replace

from robustkd.teacher.defences.base import Defence
from robustkd.teacher.defences.tuning import Tuning

_ONCE = ("rounds", "unlearn_epochs", "mask_steps", "generator_steps")


def brief(defence: Defence) -> Defence:
    """Return a defence with the same work in each training batch and as few batches as possible.

    Args:
        defence: A defence of the registry.
    """
    short: dict[str, object] = {}
    trained = [f.name for f in fields(defence) if isinstance(getattr(defence, f.name), Tuning)]
    for name in trained:
        short[name] = replace(getattr(defence, name), epochs=1)
    for field in fields(defence):
        # Beside epochs of a training, steps are those within each batch.
        if field.name in _ONCE or (field.name == "steps" and not trained):
            short[field.name] = 1
    return replace(defence, **short)
