"""Parts of a batch: for the processes that share it, and for the accumulation of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.types import Batch, Images, Labels, Places
from robustkd.training.batch_norm import SynchronisedBatchNorm
from robustkd.training.processes import Portion, Processes


class Part(NamedTuple):
    """How a process computes its images of a part of a batch.

    Attributes:
        weight: Factor of the loss, so that the gradients of all parts add up to those of the mean
            over the batch.
        portion: What the learner is told in addition to images and labels: nothing in one process.
        synchronised: Context in which BatchNorm has the statistics of all processes.
    """

    weight: float
    portion: tuple[Portion, ...]
    synchronised: AbstractContextManager[object]


class PartsOfBatches:
    """Division of batches by accumulation of gradients, and of each part among processes.

    The images of a part are dealt out in turn. A part with fewer than two images for each process
    is computed by all of them, because BatchNorm needs two images.

    Args:
        processes: The processes of the training.
        accumulate: Number of parts of a batch that are computed one after another.
    """

    def __init__(self, processes: Processes, accumulate: int) -> None:
        self._processes, self._accumulate = processes, accumulate

    def places(self, total: int) -> Places:
        """Return the places of this process's images in a batch of a size."""
        return torch.cat([start + places for start, places, _ in self._divided(total)])

    def of(self, batch: Batch, total: int) -> Iterator[tuple[Images, Labels, Part]]:
        """Yield images and labels of this process for each part of a batch.

        Args:
            batch: Images of this process.
            total: Number of images in the whole batch.
        """
        divided = list(self._divided(total))
        ends = torch.tensor([len(places) for _, places, _ in divided]).cumsum(0).tolist()[:-1]
        images, labels = batch.images.tensor_split(ends), batch.labels.tensor_split(ends)
        for some, own, (_, places, size) in zip(images, labels, divided, strict=True):
            yield some, own, self._part(places, size, total)

    def _part(self, places: Places, size: int, total: int) -> Part:
        processes, whole = self._processes, len(places) == size
        if processes.count == 1:
            return Part(size / total, (), nullcontext())
        # Also for the images that all compute: dropout differs between processes.
        synchronised = SynchronisedBatchNorm(processes, alike=whole)
        if whole:
            return Part(size / total / processes.count, (Portion(None, size),), synchronised)
        return Part(len(places) / total, (Portion(places, size),), synchronised)

    def together(
        self, parameters: Sequence[nn.Parameter], means: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add up the gradients of all processes, and return the sums of the scalars.

        A parameter without a gradient in any process keeps none, so that the optimiser leaves it.
        """
        if self._processes.count == 1:
            return means
        had = torch.tensor([each.grad is not None for each in parameters], dtype=torch.float32)
        parts = [
            *(
                each.new_zeros(each.numel()) if each.grad is None else each.grad.flatten()
                for each in parameters
            ),
            torch.stack([*means.values()]),
            had.to(parameters[0].device),
        ]
        everything = torch.cat(parts)
        self._processes.add_up(everything)
        *sums, scalars, have = everything.split([len(part) for part in parts])
        for parameter, total, count in zip(parameters, sums, have.tolist(), strict=True):
            if count:
                gradient = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = gradient.copy_(total.view(parameter.shape))
        return dict(zip(means, scalars, strict=True))

    def _divided(self, total: int) -> Iterator[tuple[int, Places, int]]:
        """Yield start, own places and size of each part of a batch of a size."""
        rank, processes = self._processes.rank, self._processes.count
        # BatchNorm needs two images in each part.
        count = max(1, min(self._accumulate, total // 2))
        for rows in torch.arange(total).tensor_split(count):
            start, size = int(rows[0]), len(rows)
            shared = size >= 2 * processes
            yield start, rows[rank::processes] - start if shared else rows - start, size
