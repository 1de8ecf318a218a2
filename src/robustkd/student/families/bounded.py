"""Bounded transformations, one for each class, updated by the sign of averaged gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.types import Images, Labels
from robustkd.training.processes import Processes

STEP = 0.1
"""Step size, as a share of the range of the parameters."""
MOMENTUM = 0.9
"""Momentum of the gradients, since one batch has only a few images for each class."""

Shape: TypeAlias = tuple[int, int, int]
Transformation: TypeAlias = Callable[[Images, Tensor], Images]


@runtime_checkable
class Family(Protocol):
    """A kind of transformation with one learned member for each class."""

    def __call__(self, images: Images, toward: Labels) -> Images:
        """Transform every image by the member of its target class ``toward``."""

    def advance(self, scale: float) -> None:
        """Update every used member along its gradient, within ``scale`` times its bound."""

    def bound(self, scale: float) -> None:
        """Project every member onto ``scale`` times its bound."""

    def forget(self) -> None:
        """Forget the calls since the last update."""


class Members(nn.Module):
    """Parameters for each class, of which a step reads and changes only those that are used.

    With many classes, most members have no image in a batch. Their parameters take no part in the
    backward pass and in the update.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        self._classes = 0  # their number, known after the first call

    def used(self, toward: Labels, *names: str) -> tuple[Tensor, ...]:
        """Return the members of the target class of each image.

        The gradients of all calls since the last update are added up. Without gradients, as
        in evaluation, calls are not remembered.

        Args:
            toward: Target classes, N.
            names: Names of buffers, each with one member for each class.

        Returns:
            For each buffer, N members.
        """
        self.to(toward.device)
        buffers = [self.get_buffer(name) for name in names]
        self._classes = len(buffers[0])
        rows, place = _rows(toward, self._classes)
        # Members of many classes and large images are held in half precision.
        leaves = tuple(_whole(buffer[rows]) for buffer in buffers)
        if torch.is_grad_enabled():
            self._reads.append((rows, tuple(leaf.requires_grad_() for leaf in leaves)))
        return tuple(leaf[place] for leaf in leaves)

    def gradients(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """Return the used classes and the gradients of their members, and forget them.

        A missing or non-finite gradient is zero. Classes that no image has may be among them, with
        gradients of zero.

        Returns:
            Classes in increasing order, and one gradient for each buffer; None if nothing was used.
        """
        reads, self._reads = self._reads, []
        if not reads:
            return None
        rows, leaves = reads[0]
        if len(reads) == 1:
            return rows, tuple(map(_gradient, leaves))
        rows = torch.cat([rows for rows, _ in reads]).unique()
        sums = tuple(leaf.new_zeros(len(rows), *leaf.shape[1:]) for leaf in leaves)
        for used, each in reads:
            # Classes are unique within a call, so the order of additions is always the same.
            places = torch.searchsorted(rows, used)
            for total, leaf in zip(sums, each, strict=True):
                total[places] += _gradient(leaf)
        return rows, tuple(map(_finite, sums))

    def add_up(self, processes: Processes) -> None:
        """Add up the gradients of all processes, each of which has called the family."""
        shapes = [leaf.shape[1:] for leaf in self._reads[0][1]] if self._reads else []
        read = self.gradients()
        if read is None:
            return
        rows, gradients = read
        used = torch.zeros(self._classes, device=rows.device)
        used[rows] = 1.0
        processes.add_up(used)
        every = used.nonzero().squeeze(1)
        leaves = []
        for gradient, shape in zip(gradients, shapes, strict=True):
            total = gradient.new_zeros(len(every), *shape)
            total[torch.searchsorted(every, rows)] = gradient
            processes.add_up(total)
            leaf = torch.empty_like(total).requires_grad_()
            leaf.grad = total
            leaves.append(leaf)
        self._reads = [(every, tuple(leaves))]

    def forget(self) -> None:
        """Forget the calls since the last update."""
        self._reads = []


class Bounded(Members):
    """One parametric transformation for each class, with parameters in a box.

    Args:
        classes: Number of classes.
        shape: Shape of one member's parameters.
        bound: Largest absolute value of the parameters: one number, or one for each.
        transform: Function of images and one set of parameters for each image; zero parameters
            should leave images unchanged.
        random: Generator of the initial parameters, which are uniform in the box.
        step: Length of a step, as a share of the bound.
        start: Largest absolute value of the initial parameters, as a share of the bound.
    """

    members: Float[Tensor, "classes ..."]
    limit: Tensor
    average: Float[Tensor, "classes ..."]

    def __init__(
        self,
        classes: int,
        shape: Shape,
        bound: float | Tensor,
        transform: Transformation,
        random: torch.Generator,
        *,
        step: float = STEP,
        start: float | int = 1.0,
    ) -> None:
        super().__init__()
        first = torch.rand((classes, *shape), generator=random) * 2 - 1
        limit = torch.as_tensor(bound, dtype=first.dtype).expand(shape).clone()
        self.transform, self.step = transform, step
        self.register_buffer("limit", limit)
        self.register_buffer("members", start * first * limit)
        self.register_buffer("average", torch.zeros_like(first))

    def forward(self, images: Images, toward: Labels) -> Images:
        """Transform every image by the member of its target class ``toward``."""
        (own,) = self.used(toward.to(images.device), "members")
        return self.transform(images, own)

    def advance(self, scale: float) -> None:
        """Update by the sign of the averaged gradient; members that were not used are unchanged.

        Gradients are normalised before they are averaged.
        """
        read = self.gradients()
        if read is None:
            return
        rows, (gradient,) = read
        average, moved = averaged(gradient, self.average[rows])
        self.average[rows] = average
        step = self.step * scale * self.limit * average.sign()
        self.members[rows] = self._within(self.members[rows] + step * moved, scale)

    def bound(self, scale: float) -> None:
        """Project the parameters onto ``scale`` times the box."""
        self.members = self._within(self.members, scale)

    def _within(self, members: Tensor, scale: float) -> Tensor:
        limit = scale * self.limit
        return torch.maximum(torch.minimum(members, limit), -limit)


class Chain(nn.Module):
    """Families that are applied one after another and updated by the same gradient."""

    def __init__(self, *families: nn.Module) -> None:
        super().__init__()
        self.families = nn.ModuleList(families)

    def forward(self, images: Images, toward: Labels) -> Images:
        """Apply every family's member in order."""
        for family in members_of(self.families):
            images = family(images, toward)
        return images

    def advance(self, scale: float) -> None:
        """Update the members of every family."""
        for family in members_of(self.families):
            family.advance(scale)

    def bound(self, scale: float) -> None:
        """Project the members of every family."""
        for family in members_of(self.families):
            family.bound(scale)

    def forget(self) -> None:
        """Forget the calls of every family since the last update."""
        for family in members_of(self.families):
            family.forget()


def members_of(families: nn.ModuleList) -> list[Family]:
    """Return the modules of a list as families."""
    return [cast(Family, family) for family in families]


def averaged(gradient: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages after a step, and which members have a gradient.

    Args:
        gradient: Gradients of N members, N x C x H x W.
        average: Their averages before the step; they are kept where the gradient is zero.
    """
    size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    moved = size > 0
    after = MOMENTUM * average + gradient / size.clamp_min(1e-30)
    return torch.where(moved, after, average), moved


def _rows(toward: Labels, classes: int) -> tuple[Tensor, Tensor]:
    """Return the classes to read, in increasing order, and the place of each image among them."""
    if classes <= len(toward):
        # Most classes are used. To find out which would stop the host until the device is ready.
        return torch.arange(classes, device=toward.device), toward
    rows, place = toward.unique(return_inverse=True)
    return rows, place


def _gradient(leaf: Tensor) -> Tensor:
    """Return the gradient, with zero for a missing or non-finite one."""
    return torch.zeros_like(leaf) if leaf.grad is None else _finite(leaf.grad)


def _whole(values: Tensor) -> Tensor:
    """Return values of half precision in single precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
