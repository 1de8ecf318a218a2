"""Feature masks of a detoxified teacher, and reading and writing such a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError, first_line
from robustkd.core.types import Features, Images, Logits
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_share
from robustkd.models import Classifier, model_file
from robustkd.models.checks import check_keys
from robustkd.models.features import taps
from robustkd.models.serialization import restore

_INITIAL_MASK = 0.02


class FeatureMask(nn.Module):
    """``(1 - mask) * features + mask * pattern``, broadcast over the batch.

    Mask and pattern have the shape of one image's features, whatever their layout: C x H x W of a
    convolutional stage, T x C of tokens.

    Args:
        pattern: Initial value of the pattern; it is copied.
        cap: Largest value of the mask, in (0, 1].

    Raises:
        UsageError: If ``cap`` is out of range.
    """

    def __init__(self, pattern: Tensor, *, cap: float) -> None:
        check_share(cap=cap)
        super().__init__()
        self.cap = cap
        self.pattern = nn.Parameter(pattern.clone())
        self.mask = nn.Parameter(torch.full_like(pattern, min(_INITIAL_MASK, cap)))

    def forward(self, features: Features) -> Features:
        """Apply mask and pattern; the shape is kept."""
        # With a batch dimension, since the compiler expects tensors of one rank in channels_last.
        pattern, mask = (part.to(features.dtype)[None] for part in (self.pattern, self.mask))
        return torch.lerp(features, pattern, mask)

    @torch.no_grad()
    def project(self) -> None:
        """Clip the mask to [0, cap], after an optimiser step."""
        self.mask.clamp_(0.0, self.cap)


class DetoxifiedTeacher(nn.Module):
    """A frozen teacher with feature masks after its stages.

    It is always in eval mode. :attr:`taps` are the paths of its *cleaned* features.

    Args:
        teacher: The network; it is copied and stays unchanged.
        masks: Masks by the module path of the stage: modules that map its features to cleaned ones.
    """

    def __init__(self, teacher: nn.Module, masks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)
        self.locations = tuple(masks)
        self.masks = nn.ModuleList(masks.values())
        self.eval()

    @property
    def feature_masks(self) -> tuple[FeatureMask, ...]:
        """The masks, in order of the stages."""
        return tuple(mask for mask in self.masks if isinstance(mask, FeatureMask))

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the cleaned features, in order of the stages."""
        return tuple(f"masks.{index}" for index in range(len(self.masks)))

    def train(self, mode: bool = True) -> DetoxifiedTeacher:  # noqa: ARG002 (nn.Module's signature)
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, images: Images) -> Logits:
        """Compute the logits from the cleaned features."""
        changes: dict[str, Callable[[Tensor], Tensor]] = dict(
            zip(self.locations, self.masks, strict=True)
        )
        with taps.rewrite(self.teacher, changes):
            logits: Tensor = self.teacher(images)
        return logits


def save_detoxified(
    teacher: DetoxifiedTeacher, path: str | Path, *, provenance: Mapping[str, object] | None = None
) -> None:
    """Save a detoxified teacher with its masks as one file.

    Args:
        teacher: The detoxified teacher.
        path: File to write; its folder is created.
        provenance: Origin of the teacher, in JSON values without times or paths.

    Raises:
        UsageError: If it is no detoxified teacher, its masks are of another class than
            :class:`FeatureMask`, or its original network is not a
            :class:`robustkd.models.Classifier`.
        WriteError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> teacher = robustkd.build(spec, seed=0)
        >>> cleaned = robustkd.detoxify(teacher, data, steps=1, raises=0).teacher
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     robustkd.save_detoxified(cleaned, f"{folder}/cleaned.safetensors")
        ...     again = robustkd.load_detoxified(f"{folder}/cleaned.safetensors")
        >>> again.locations == cleaned.locations
        True
    """
    path = Path(path)
    if not isinstance(teacher, DetoxifiedTeacher):
        raise UsageError(
            f"teacher is of type {type(teacher).__name__}; expected a DetoxifiedTeacher, such as "
            "the attribute teacher of what detoxify returns: robustkd.save takes plain networks"
        )
    inner = teacher.teacher
    if not isinstance(inner, Classifier):
        raise UsageError(f"{type(inner).__name__} cannot be saved; expected a models.Classifier")
    others = [type(mask).__name__ for mask in teacher.masks if type(mask) is not FeatureMask]
    if others:
        raise UsageError(f"masks of type {others[0]} cannot be saved; expected FeatureMask")
    caps = [mask.cap for mask in teacher.feature_masks]
    description = {
        "spec": asdict(inner.spec),
        "masks": list(zip(teacher.locations, caps, strict=True)),
        "provenance": dict(provenance or {}),
    }
    model_file.write_safetensors(path, teacher.state_dict(), description)


@usual_state
def load_detoxified(
    path: str | Path, *, arch: str | None = None, links: bool = True
) -> DetoxifiedTeacher:
    """Load a detoxified teacher that :func:`save_detoxified` wrote.

    Args:
        path: The file.
        arch: Architecture, as for :func:`robustkd.models.load`.
        links: If True, the path may be a link, as for :func:`robustkd.models.load`.

    Returns:
        The detoxified teacher, in eval mode and without gradients, on the CPU.

    Raises:
        UsageError: If the architecture is unknown.
        InputError: If the file is damaged, or its tensors do not fit its description.

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> teacher = robustkd.build(spec, seed=0)
        >>> cleaned = robustkd.detoxify(teacher, data, steps=1, raises=0).teacher
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     robustkd.save_detoxified(cleaned, f"{folder}/cleaned.safetensors")
        ...     robustkd.load_detoxified(f"{folder}/cleaned.safetensors").training
        False
    """
    path = Path(path)
    tensors, description = model_file.read_safetensors(path, links=links)
    part = "teacher."
    own = {n.removeprefix(part): tensor for n, tensor in tensors.items() if n.startswith(part)}
    inner = restore(own, description, path, arch=arch)
    try:
        listed: Any = description["masks"]
        caps = {str(name): float(cap) for name, cap in listed}
        # On the meta device, tensors take no memory, even if the file declares huge shapes.
        hollow = copy.deepcopy(inner).to("meta")
        with taps.read(hollow, list(caps)) as features, torch.no_grad():
            hollow(torch.zeros(1, *inner.spec.image_shape, device="meta"))
        shell = {name: FeatureMask(features[name][0], cap=cap) for name, cap in caps.items()}
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        reason = first_line(error)
        raise InputError(f"{path} has a damaged description of its masks: {reason}") from error
    check_keys(DetoxifiedTeacher(hollow, shell), tensors, path, inner.spec.arch)
    masks = {
        name: FeatureMask(tensors[f"masks.{index}.pattern"], cap=cap)
        for index, (name, cap) in enumerate(caps.items())
    }
    cleaned = DetoxifiedTeacher(inner, masks)
    cleaned.load_state_dict(tensors)
    for name, mask in masks.items():
        inside = ((mask.mask >= 0) & (mask.mask <= mask.cap)).all()
        if not inside or not mask.pattern.isfinite().all():
            raise InputError(
                f"{path} has a mask outside [0, {mask.cap}], or a pattern that is not finite, "
                f"for {name!r}"
            )
    return cleaned.requires_grad_(False)
