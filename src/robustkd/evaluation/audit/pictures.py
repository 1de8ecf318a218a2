"""Pictures of what an audit found: images before and after the learned transformation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.files import replacing
from robustkd.core.types import Images, Labels
from robustkd.evaluation.audit.evidence import Member, Subject
from robustkd.evaluation.audit.search import FAMILIES
from robustkd.student.families import members_of

_MOST = 6
_LARGEST_SIDE = 96
_SHEET_SIDE = 96
_GAP = 4


@dataclass(frozen=True)
class Pictures:
    """Validation images of other classes, without and with a learned transformation.

    Attributes:
        member: The transformation.
        before: The images, float in [0, 1], n x C x H x W, on the CPU; larger ones than 96 x 96 are
            reduced.
        after: The transformed images, likewise.
        said_before: Classes that the network predicts for the original images.
        said_after: Classes that it predicts for the transformed images.
    """

    member: Member
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    said_before: tuple[int, ...]
    said_after: tuple[int, ...]

    @property
    def change(self) -> Tensor:
        """The differences, amplified; 0.5 where nothing has changed."""
        change = self.after - self.before
        most = float(change.abs().amax())
        return 0.5 + change * (0.5 / most if most > 0 else 0.0)

    def record(self) -> dict[str, object]:
        """Return what the network said as JSON values; the images are not part of them."""
        return {"before": list(self.said_before), "after": list(self.said_after)}

    def write_png(self, path: Path) -> None:
        """Write a PNG file with the images, the transformed images, and the amplified differences.

        Raises:
            WriteError: If the file cannot be written.
        """
        from PIL import Image

        first, *others = (_row(images) for images in (self.before, self.after, self.change))
        below = (F.pad(row, (0, 0, _GAP, 0), value=1.0) for row in others)
        sheet = torch.cat([first, *below], 1)
        pixels = sheet.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        with replacing(path) as partial:
            Image.fromarray(pixels).save(partial, format="PNG")


def pictures_of(subject: Subject, member: Member) -> Pictures:
    """Transform a few validation images of different classes as a member of the search does.

    The images are the first of their classes, whether the transformation moves them or not.
    """
    images, labels = subject.held_out()
    chosen = _of_different_classes(labels, member.target)
    before = images[chosen]
    family = members_of(subject.found[member.strength])[FAMILIES.index(member.family)]
    toward = torch.full_like(labels[chosen], member.target)
    with torch.no_grad():
        after = family(before, toward).detach()
        said = [tuple(subject.network(each).argmax(1).tolist()) for each in (before, after)]
    return Pictures(member, _small(before), _small(after), *said)


def _of_different_classes(labels: Labels, target: int) -> Tensor:
    """Return the places of the first images of a few classes other than the target."""
    first: dict[int, int] = {}
    for place, label in enumerate(labels.tolist()):
        if label not in (target, *first):
            first[label] = place
    return torch.tensor(list(first.values())[:_MOST], dtype=torch.long, device=labels.device)


def _small(images: Images) -> Tensor:
    """Reduce large images by averaging, and move them to the CPU."""
    shrink = -(-max(images.shape[2:]) // _LARGEST_SIDE)
    reduced = F.avg_pool2d(images, shrink, ceil_mode=True) if shrink > 1 else images
    return reduced.clamp(0, 1).cpu().contiguous()


def _row(images: Tensor) -> Tensor:
    """Return images side by side as three channels, small ones with enlarged pixels."""
    scale = max(1, _SHEET_SIDE // max(images.shape[2:]))
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    large = large.expand(-1, 3, -1, -1) if large.shape[1] == 1 else large[:, :3]
    first, *others = large
    return torch.cat([first, *(F.pad(each, (_GAP, 0), value=1.0) for each in others)], 2)
