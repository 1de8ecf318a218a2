"""Content of ``robustkd list``, read from the registries, and descriptions of architectures."""

from __future__ import annotations

import torch

from robustkd import models
from robustkd.attacks import ATTACKS
from robustkd.attacks.registry import AttackRow
from robustkd.attacks.two_triggers import can_be_combined
from robustkd.core.methods import ALIASES, METHODS
from robustkd.core.targets import NEXT
from robustkd.data import PICTURES, SOURCES
from robustkd.models import FAMILIES
from robustkd.models.complexity import operations
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages
from robustkd.teacher.defences.registry import DEFENCES
from robustkd.training.losses import LOSSES
from robustkd.training.trial import check_works

_USUAL_IMAGE = (3, 32, 32)
_CLASSES = 10


def catalogue() -> dict[str, dict[str, str]]:
    """Return a one-line description of each name, by kind, in the order of the registries."""
    return {
        "data": {name: _first_line(load.__doc__) for name, load in {**SOURCES, **PICTURES}.items()},
        "models": {
            family.usage: ", e.g. ".join(
                part for part in (name, ", ".join(family.examples)) if part
            )
            for name, family in FAMILIES.items()
        },
        "methods": {name: _with_aliases(name, how.summary) for name, how in METHODS.items()},
        "defences": {name: f"{row.summary} ({row.source})" for name, row in DEFENCES.items()},
        "losses": dict(LOSSES),
        "attacks": {name: _with_target(row) for name, row in ATTACKS.items()},
    }


def _with_aliases(method: str, summary: str) -> str:
    other = [name for name, known in ALIASES.items() if known == method]
    return f"{summary}; also called {' or '.join(other)}" if other else summary


def _with_target(attack: AttackRow) -> str:
    flags = [
        *([f"--target {NEXT}"] if attack.next_class else []),
        *(["--second"] if can_be_combined(attack.attack) else []),
    ]
    return f"{attack.summary}; also with {' or '.join(flags)}" if flags else attack.summary


def describe(
    arch: str, *, image_shape: tuple[int, int, int] | None = None
) -> dict[str, dict[str, str]]:
    """Describe the size and the taps of an architecture for 10 classes.

    Args:
        arch: Name of the architecture.
        image_shape: Channels, height and width; if None, those of the published weights, or
            3 x 32 x 32 if there are none.

    Raises:
        UsageError: If the architecture is unknown, does not fit the images, or has no stages.
    """
    published = models.preprocessing(arch)
    usual = published.image_shape if published is not None else _USUAL_IMAGE
    shape = image_shape or usual
    model = models.build(models.Spec(arch, _CLASSES, shape), seed=0)
    images = torch.zeros(2, *shape)
    check_works(model, images, name=str(arch))
    names = stages(model, images)
    layouts = layouts_of(model, names, images)
    size = {
        "images": _times(shape),
        "parameters": f"{models.parameters(model):,}",
    }
    count = operations(model, shape)
    if count is not None:
        size["MMACs"] = f"{count / 1e6:,.1f}"
    if published is not None:
        size["mean"] = ", ".join(map(str, published.mean))
        size["std"] = ", ".join(map(str, published.std))
    return {
        str(arch): size,
        "taps": {
            name: f"{_times(layout.shape)} ({layout.kind})"
            for name, layout in zip(names, layouts, strict=True)
        },
    }


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].rstrip(".")
