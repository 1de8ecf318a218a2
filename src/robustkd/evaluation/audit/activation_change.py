r"""Trigger-activated change: a class to which a small common change of the features leads.

For the features f of the last layer and its weights w and biases b, the smallest change that makes
every clean image a member of class k is

.. math:: s_k = \arg\min_s \|s\|^2 \quad \text{such that} \quad
    (w_k - w_j)^\top (f(x_i) + s) + b_k - b_j \ge 0 \quad \text{for all } i, j

which is a convex quadratic programme. For each j, only the image with the largest violation
matters, so that there is one constraint for each other class. A backdoor makes its target easy to
reach, so :math:`\|s_k\|` of the target is small.

Null distribution: the :math:`\log \|s_k\|` are normal with one mean
(:func:`robustkd.evaluation.audit.outliers.student_outlier`).

Source: Iwahana, Yamasaki, Ito, Miura, Shibahara, *Robust Backdoor Removal by Reconstructing
Trigger-Activated Changes in Latent Representation*, 2025, arXiv 2511.08944. Differences: the
deleted residual of the logarithms in place of a threshold, and biases are part of the constraints.
The programme is solved as a least-distance problem by non-negative least squares (Lawson and
Hanson, *Solving Least Squares Problems*, 1974, chapter 23).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable
from robustkd.models.features.probing import linear_head

MOST = 200
"""Largest number of classes: the time grows with its third power."""
_LEAST = 1e-9


def activation_change(subject: Subject) -> Evidence:
    """Test whether the features reach one class by a much smaller change than the others."""
    if subject.classes > MOST:
        return Evidence(None, None, f"more than {MOST} classes")
    images, _ = subject.held_out()
    head = linear_head(subject.network, images[:2])
    if head is None:
        return Evidence(None, None, "the network does not end in a linear layer")
    if head.out_features != subject.classes:
        return Evidence(None, None, "no last layer with one output per class")
    sizes = [
        float(np.linalg.norm(smallest_change(rows, needed)))
        for rows, needed in constraints(head.weight.detach(), violations(head, subject))
    ]
    outlier = student_outlier([-math.log(max(size, _LEAST)) for size in sizes])
    if outlier is None:
        return Evidence(None, None, untestable(sizes), tuple(sizes))
    said = "the features need the smallest change to become this class"
    return Evidence(outlier.p_value, outlier.place, said, tuple(sizes))


@torch.no_grad()
def violations(head: nn.Linear, subject: Subject) -> Float[Tensor, "classes classes"]:
    """Return for classes k and j the largest excess of the logit of j over that of k."""
    images, _ = subject.held_out()
    logits = torch.cat([subject.network(some) for some in subject.split(images)]).double()
    columns = range(head.out_features)
    return torch.stack([(logits - logits[:, k : k + 1]).amax(0) for k in columns]).cpu()


def constraints(
    weight: Float[Tensor, "classes features"], needed: Float[Tensor, "classes classes"]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the matrix A and the bounds c of :math:`A s >= c` for each class."""
    rows = weight.double().cpu()
    others = [[j for j in range(len(rows)) if j != k] for k in range(len(rows))]
    return [
        ((rows[k] - rows[rest]).numpy(), needed[k, rest].numpy()) for k, rest in enumerate(others)
    ]


def smallest_change(rows: NDArray[Any], needed: NDArray[Any]) -> NDArray[Any]:
    """Return the vector s of the smallest norm with ``rows @ s >= needed``.

    Args:
        rows: Matrix of M constraints, M x N.
        needed: Their M lower bounds.

    Returns:
        N values; infinity everywhere if no vector fulfils the constraints.

    >>> smallest_change(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([3.0, -1.0])).round(6).tolist()
    [3.0, 0.0]
    """
    largest = float(needed.max())
    if largest <= 0:
        return np.zeros(rows.shape[1])
    matrix = np.vstack([rows.T, needed / largest])
    goal = np.zeros(len(matrix))
    goal[-1] = 1
    weights, distance = nnls(matrix, goal)
    if distance < _LEAST:
        return np.full(rows.shape[1], np.inf)
    rest = matrix @ weights - goal
    change: NDArray[Any] = -rest[:-1] / rest[-1] * largest
    return change
