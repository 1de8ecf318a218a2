r"""Hypergradient: the gradient of an outer loss through the optimum of an inner loss.

If the follower :math:`\omega` minimises an inner loss that depends on the leader :math:`\lambda`,
the implicit function theorem gives

.. math:: \frac{d\, outer(\omega^*(\lambda), \lambda)}{d\lambda} = \partial_\lambda outer
    - \partial^2_{\lambda\omega} inner \, (\partial^2_{\omega\omega} inner)^{-1}
    \, \partial_\omega outer
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustkd.core.validation import check_count, check_positive


class Hypergradient(NamedTuple):
    """The two parts of a hypergradient, with one tensor per leader; the gradient is their sum.

    Attributes:
        direct: Partial derivative of the outer loss with respect to the leaders.
        implicit: Derivative of the outer loss through the followers.
    """

    direct: tuple[Tensor, ...]
    implicit: tuple[Tensor, ...]

    def total(self, weight: float = 1.0) -> tuple[Tensor, ...]:
        """Return the sum of both parts, with a weight on the implicit part."""
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
    r"""Differentiate the outer loss with respect to the leaders, at an optimum of the inner loss.

    The inverse Hessian is never computed. With :math:`g = \partial_\omega outer`, the Hessian H of
    the inner loss and the step size :math:`\eta`, it is replaced by a fixed-point iteration that
    starts from v = 0:

    .. math:: v \leftarrow (I - \eta H)\, v + g, \qquad
        implicit = -\eta\, \partial^2_{\lambda\omega} inner \, v

    After K steps, this is the gradient through K steps of gradient descent from the optimum. The
    iteration converges if H is positive definite and :math:`\eta` is below 2 over the largest
    eigenvalue of H. The implicit part is too small until :math:`K \eta` reaches 1 over the smallest
    eigenvalue. The iteration stops if a step is longer than the previous one, which never happens
    while it converges.

    Source: Grazzi, Franceschi, Pontil, Salzo 2020, arXiv 2006.16218.

    Args:
        inner: Scalar that the followers minimise, computed under :func:`twice_differentiable`.
        outer: Scalar to differentiate.
        followers: Leaf tensors of both graphs.
        leaders: Leaf tensors of the inner graph and possibly of the outer graph.
        steps: Number of steps K, at least 1; each costs one product with the Hessian.
        step_size: Step size :math:`\eta`, above 0.
        tolerance: The iteration stops once v changes by less than this (Euclidean norm).

    Returns:
        The direct and the implicit part.

    Raises:
        UsageError: If ``steps`` or ``step_size`` is out of range.

    >>> follower, leader = torch.tensor(3.0, requires_grad=True), torch.tensor(3.0).requires_grad_()
    >>> inner, outer = (follower - leader).square(), follower.square()
    >>> hypergradient(inner, outer, [follower], [leader], steps=50, step_size=0.25).implicit
    (tensor(6.),)
    """
    check_count(steps=steps)
    check_positive(step_size=step_size)
    follower, leader = list(followers), list(leaders)
    parts = _gradients(outer, follower + leader)
    goal, direct = parts[: len(follower)], parts[len(follower) :]
    found = torch.autograd.grad(inner, follower, create_graph=True, allow_unused=True)
    used = [place for place, each in enumerate(found) if each is not None]
    slope = [each for each in found if each is not None]
    if not used:
        return Hypergradient(direct, tuple(map(torch.zeros_like, leader)))
    follower, goal = [follower[place] for place in used], tuple(goal[place] for place in used)
    v, pace = goal, norm(goal)  # The first step, from zero.
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


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Context manager for forward passes whose losses are differentiated twice.

    The fused kernels of attention have no second derivative, so the plain one is used.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of a list of tensors."""
    return float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())


def _gradients(
    of: Tensor | Sequence[Tensor], by: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Compute gradients and keep the graph; they are zero where there is no dependence."""
    return torch.autograd.grad(of, by, weights, retain_graph=True, materialize_grads=True)
