"""What may stand in a picture."""

from __future__ import annotations

from torch import Tensor


def into_range(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], with the gradient of the pixels before they were put there.

    The gradient of ``clamp`` ends at its bounds: where a picture is black, whatever has begun to
    darken it is told nothing any more and stays, though it does nothing. Pictures with a black
    ground then learn half a perturbation.

    Source: the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432.

    Args:
        pixels: Of any shape.

    >>> import torch
    >>> pixels = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    >>> into_range(pixels).sum().backward()
    >>> into_range(pixels).tolist(), pixels.grad.tolist()
    ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    """
    return pixels.detach().clamp(0, 1) + (pixels - pixels.detach())
