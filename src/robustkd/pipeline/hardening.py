"""The perturbations of a method's hardening, with those that are found on the teacher."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from robustkd.core.methods import Method
from robustkd.core.progress import track
from robustkd.core.types import DataSource
from robustkd.student.found import STEPS, FoundPerturbations, find_perturbations, search_steps
from robustkd.student.hardening import UniversalPerturbations


def make_hardening(
    how: Method, teacher: nn.Module, clean: DataSource, *, seed: int
) -> UniversalPerturbations | None:
    """Return the perturbations of a method; None if it does not harden.

    Args:
        how: The method. If it names families that are searched on the teacher, and the student
            learns from the teacher, they are searched now.
        teacher: The network that the student learns from; it is not changed.
        clean: Clean images.
        seed: Seed of everything random.
    """
    if how.hardening is None:
        return None
    settings = asdict(how.hardening)
    settings.pop("found")
    fixed = find_for(how, teacher, clean, seed=seed)
    return UniversalPerturbations(
        len(clean.classes), clean.image_shape, fixed=fixed, seed=seed, **settings
    )


def find_for(
    how: Method, teacher: nn.Module, clean: DataSource, *, seed: int, steps: int = STEPS
) -> FoundPerturbations | None:
    """Search the families of a method on the teacher, in full precision.

    Returns:
        What was found; None if the method has no families, or the student does not learn from the
        teacher.
    """
    hardening = how.hardening
    if hardening is None or not hardening.found or not how.losses:
        return None
    with track("search the teacher", search_steps(steps)) as update:
        return find_perturbations(
            teacher,
            clean,
            hardening.found,
            seed=seed,
            steps=steps,
            tell=update,
        )
