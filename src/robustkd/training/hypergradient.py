r"""The gradient of a loss through the optimum of another one.

Where the follower :math:`\omega` minimises an inner loss that the leader :math:`\lambda` shapes,
the implicit function theorem gives

.. math:: \frac{d\, outer(\omega^*(\lambda), \lambda)}{d\lambda} = \partial_\lambda outer
    - \partial^2_{\lambda\omega} inner \, (\partial^2_{\omega\omega} inner)^{-1}
    \, \partial_\omega outer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustkd.core.validation import check_positive


class Hypergradient(NamedTuple):
    """The two parts, one tensor for each leader; the gradient is their sum.

    Attributes:
        direct: What the outer loss says of the leaders themselves.
        implicit: What it says of them through the followers.
    """

    direct: tuple[Tensor, ...]
    implicit: tuple[Tensor, ...]

    def total(self, weight: float = 1.0) -> tuple[Tensor, ...]:
        """The gradient, or one whose implicit part counts less."""
        return tuple(direct + weight * implicit for direct, implicit in zip(*self, strict=True))


def hypergradient(
    inner: Tensor,
    outer: Tensor,
    followers: Sequence[Tensor],
    leaders: Sequence[Tensor],
    *,
    steps: int,
    step_size: float,
    tolerance: float = 0.0,
) -> Hypergradient:
    r"""Differentiate the outer loss in the leaders, at an optimum of the inner loss.

    The inverse is never built: with :math:`g = \partial_\omega outer`, the Hessian H of the inner
    loss and the step size :math:`\eta`, the fixed point of gradient descent gives, from v = 0,

    .. math:: v \leftarrow (I - \eta H)\, v + g, \qquad
        implicit = -\eta\, \partial^2_{\lambda\omega} inner \, v

    After K steps this is the gradient through K steps of gradient descent from the optimum. It
    converges if H is positive definite and :math:`\eta` below 2 over its largest eigenvalue; until
    :math:`K \eta` reaches 1 over the smallest, the implicit part is too small. Where a step would
    be longer than the one before it, which never happens while it converges, v stays as it is.

    Source: Grazzi, Franceschi, Pontil, Salzo 2020, arXiv 2006.16218.

    Args:
        inner: Scalar that the followers minimise; twice differentiable.
        outer: Scalar to differentiate.
        followers: Leaves of both graphs.
        leaders: Leaves of the inner graph, perhaps of the outer one.
        steps: K, at least 1; each costs one product with the Hessian.
        step_size: :math:`\eta`, above 0.
        tolerance: Stop earlier once v moves by less than this (Euclidean).

    Raises:
        UsageError: If ``steps`` or ``step_size`` is not above 0.

    >>> follower, leader = torch.tensor(3.0, requires_grad=True), torch.tensor(3.0).requires_grad_()
    >>> inner, outer = (follower - leader).square(), follower.square()
    >>> hypergradient(inner, outer, [follower], [leader], steps=50, step_size=0.25).implicit
    (tensor(6.),)
    """
    check_positive(fixed_point_steps=steps, step_size=step_size)
    follower, leader = list(followers), list(leaders)
    parts = _gradients(outer, follower + leader)
    goal, direct = parts[: len(follower)], parts[len(follower) :]
    slope = torch.autograd.grad(inner, follower, create_graph=True)
    v, pace = goal, norm(goal)  # the first step from zero
    for _ in range(steps - 1):
        curved = torch.autograd.grad(slope, follower, v, retain_graph=True)
        change = [g - step_size * bent for bent, g in zip(curved, goal, strict=True)]
        moved = norm(change)
        if not moved <= pace:
            break
        v, pace = tuple(old + more for old, more in zip(v, change, strict=True)), moved
        if moved < tolerance:
            break
    mixed = _gradients(slope, leader, v)
    return Hypergradient(direct, tuple(-step_size * part for part in mixed))


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of a list of tensors."""
    return float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())


def _gradients(
    of: Tensor | Sequence[Tensor], by: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Gradients, zero where there is no dependence; the graph stays."""
    return torch.autograd.grad(of, by, weights, retain_graph=True, materialize_grads=True)
