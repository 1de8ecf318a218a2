"""BatchNorm over the images of several processes, on any device.

The statistics of a layer are those of the whole batch, as in one process. PyTorch's
``SyncBatchNorm`` computes the same on GPUs only, and replaces the modules of the network. Here the
function that all such modules call is replaced while a block lasts, so that modules of other
libraries, which are kinds of BatchNorm with a forward pass of their own, are covered as well.

Source: Ioffe and Szegedy 2015, arXiv 1502.03167; statistics of parts are put together by the
formula of Chan, Golub and LeVeque 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkd.training.processes import Processes

_EPS = 1e-5


class SynchronisedBatchNorm(TorchFunctionMode):
    """Let BatchNorm in training mode use the images of all processes while the block lasts.

    All processes have to call the same layers in the same order, with at least one image each.

    Args:
        processes: The processes of the training.
        alike: If True, all processes have the same images, which count once.
    """

    def __init__(self, processes: Processes, *, alike: bool = False) -> None:
        super().__init__()
        self._processes, self._copies = processes, processes.count if alike else 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (PyTorch's own)
        named = dict(kwargs or {})
        if func is F.batch_norm:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | named
            if given.get("training", False):
                return _normalised(self._processes, self._copies, **given)
        return func(*args, **named)


_ARGUMENTS = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)


def _normalised(
    processes: Processes,
    copies: int,
    *,
    input: Tensor,  # noqa: A002 (the name in torch.nn.functional.batch_norm)
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise by the statistics of all processes, and update the running ones."""
    del training
    mean, variance, count = _statistics(input.detach(), processes)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            images = count / copies
            unbiased = variance * (images / (images - 1).clamp_min(1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
    shift = torch.zeros_like(mean) if bias is None else bias.to(mean.dtype)
    found: Tensor = _BatchNorm.apply(input, scale, shift, mean, variance, count, eps, processes)
    return found


@torch.no_grad()
def _statistics(values: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean and variance of each channel, and the number of values, over all processes."""
    # The kernel of BatchNorm is several times faster than var_mean for images in channels_last.
    _, mean, deviation = torch.native_batch_norm(
        *(values, None, None, None, None), training=True, momentum=0.0, eps=_EPS
    )
    variance = (deviation.pow(-2) - _EPS).clamp_min(0)
    count = mean.new_full((1,), values.numel() / values.shape[1])
    every = processes.gather(torch.cat([mean, variance, count]))
    means, variances, counts = every.tensor_split([len(mean), 2 * len(mean)], dim=1)
    total = counts.sum(0)
    weights = counts / total
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return mean, variance, total


class _BatchNorm(torch.autograd.Function):
    """Normalisation by given statistics, whose gradient is that of BatchNorm in training mode."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (PyTorch's own)
        values: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        processes: Processes,
    ) -> Tensor:
        ctx.save_for_backward(values, scale, mean, variance, count)
        ctx.eps, ctx.processes = eps, processes
        return F.batch_norm(values, mean, variance, scale, shift, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        values, scale, mean, variance, count = ctx.saved_tensors
        straight, per_scale, per_shift = torch.ops.aten.native_batch_norm_backward(
            *(gradient, values, scale, mean, variance, None, None),
            *(False, ctx.eps, [True, True, True]),
        )
        # The statistics depend on all values of all processes.
        sums = torch.stack([per_scale, per_shift])
        ctx.processes.add_up(sums)
        deviation = torch.rsqrt(variance + ctx.eps)
        slope = scale * deviation.square() * sums[0] / count
        offset = scale * deviation * sums[1] / count
        shape = [1, -1] + [1] * (values.ndim - 2)
        through = (values - mean.view(shape)) * slope.view(shape) + offset.view(shape)
        return straight - through.to(straight.dtype), per_scale, per_shift, *(None,) * 5
