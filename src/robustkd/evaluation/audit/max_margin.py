r"""Maximum margin (MM-BD): the largest margin of each class over all images, without data.

.. math:: r_k = \max_{x \in [0, 1]^d} z_k(x) - \max_{j \ne k} z_j(x)

found by Adam from uniform random images. A backdoor raises the margin of its target class. With
references, :math:`r_k` is divided by its mean over the references, since some classes have a larger
margin than others in every network.

Null distribution: the logarithms are normal with one mean
(:func:`robustkd.evaluation.audit.outliers.student_outlier`), with a standard deviation of at least
0.1.

Source: Wang, Xiang, Miller, Kesidis, *MM-BD: Post-Training Detection of Backdoor Attacks with
Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic*, S&P 2024, arXiv 2205.06900.
Differences: Adam on sigmoid coordinates with a fixed number of steps from a few starts, where the
paper takes projected gradient steps from many starts until they converge; the comparison with
references; the paper fits a gamma or an exponential distribution, whose tails are so thin that a
clean network of our calibration had a p-value of 2e-10.
"""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable

_RATE = 0.3
_LEAST_SPREAD = 0.1


def max_margin(subject: Subject) -> Evidence:
    """Maximise the margin of each class over the pixels, and test the largest one."""
    own = largest_margins(subject.network, subject)
    theirs = [largest_margins(each, subject) for each in subject.references.networks]
    beside = torch.stack(theirs).mean(0).clamp_min(1e-9) if theirs else torch.ones_like(own)
    values = (own / beside).tolist()
    details = {"own": own.tolist(), "references": [each.tolist() for each in theirs]}
    outlier = student_outlier([math.log(max(v, 1e-9)) for v in values], spread=_LEAST_SPREAD)
    if outlier is None:
        return Evidence(None, None, untestable(values), tuple(values), details)
    ratio = values[outlier.place] / max(median(values), 1e-9)
    said = f"its largest margin is {ratio:.2g} times that of the median class"
    return Evidence(outlier.p_value, outlier.place, said, tuple(values), details)


def largest_margins(network: nn.Module, subject: Subject) -> Tensor:
    """Return the largest margin of each class that Adam finds, on the CPU."""
    classes, starts = subject.classes, subject.effort.margins
    random = torch.Generator().manual_seed(subject.seed)
    shape = (classes * starts, *subject.data.image_shape)
    pixels = torch.rand(shape, generator=random).to(device_of(network))
    toward = torch.arange(classes, device=pixels.device).repeat_interleave(starts)
    place = pixels.logit(eps=1e-3).requires_grad_()
    optimiser = torch.optim.Adam([place], lr=_RATE)
    best = torch.full((len(place),), -torch.inf, device=pixels.device)
    for _ in range(subject.effort.margin_steps):
        found = []
        optimiser.zero_grad(set_to_none=True)
        for some, led in zip(subject.split(place), subject.split(toward), strict=True):
            images = some.sigmoid().contiguous(memory_format=torch.channels_last)
            reached = margins(network(images), led)
            (-reached.sum()).backward()
            found.append(reached.detach())
        optimiser.step()
        best = torch.maximum(best, torch.cat(found))
    return best.view(classes, starts).amax(1).cpu()


def margins(logits: Tensor, toward: Tensor) -> Tensor:
    """Return the logit of a class minus the largest other one, for each image.

    >>> margins(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([2]))
    tensor([-1.])
    """
    own = logits.gather(1, toward[:, None]).squeeze(1)
    return own - logits.scatter(1, toward[:, None], -torch.inf).amax(1)
