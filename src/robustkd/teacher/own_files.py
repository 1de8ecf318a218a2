"""Teachers in files of this package, which describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.models.checks import check_claim
from robustkd.models.classifier import Spec
from robustkd.models.description import check_fits, described_spec
from robustkd.models.model_file import parse_description
from robustkd.models.registry import build
from robustkd.models.serialization import restore
from robustkd.teacher import match
from robustkd.teacher.facts import Teacher, facts_of
from robustkd.teacher.normalisation import Normalisation
from robustkd.teacher.options import Option
from robustkd.teacher.untrusted import quarantine

OWN_FILE = "the teacher's file"
"""Origin of what a file itself states."""


def check_ours(
    layout: quarantine.Layout,
    spec: Spec,
    path: Path,
    given: Normalisation | None,
    *,
    any_classes: bool,
) -> None:
    """Raise an error if a file of this package does not match, before values are read."""
    tensors, _ = match.to_float32(layout.tensors, path)
    description = parse_description(layout.description, path)
    said = described_spec(description, path, spec.arch)
    if any_classes:
        spec = replace(spec, classes=said.classes)
    _check_description(said, spec, path, given=given)
    check_claim(tensors, description, path, arch=spec.arch)


def ours(read: quarantine.Quarantined, arch: str, path: Path) -> Teacher:
    """Restore the model in a file of this package."""
    tensors, converted = match.to_float32(read.tensors, path)
    description = parse_description(read.description, path)
    plan = match.Plan({name: name for name in tensors})
    weights = match.Matched(tensors, converted)
    facts = facts_of(read, Option(0, plan, ""), weights, OWN_FILE)
    return Teacher(restore(tensors, description, path, arch=arch), facts)


def with_fresh_head(teacher: Teacher, spec: Spec, head: Mapping[str, Tensor]) -> Teacher:
    """Return a network of the classes of a spec, whose other tensors are those of a teacher."""
    own = teacher.model.spec
    model = build(replace(own, classes=spec.classes, class_names=()), seed=0)
    model.network.load_state_dict({**teacher.model.network.state_dict(), **head})
    unused = (f"head of {own.classes} classes", *teacher.file.ignored)
    return Teacher(model.eval(), replace(teacher.file, ignored=unused))


def _check_description(said: Spec, spec: Spec, path: Path, *, given: Normalisation | None) -> None:
    """Raise an error if the description in a file of this package contradicts the user."""
    check_fits(said, path, classes=spec.classes, image_shape=spec.image_shape)
    if given not in (None, (said.mean, said.std)):
        raise UsageError(
            f"mean is {spec.mean} and std is {spec.std}; {path} states {said.mean} and "
            f"{said.std}: leave them out"
        )
