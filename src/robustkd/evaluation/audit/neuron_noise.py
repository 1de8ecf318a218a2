r"""Neuron noise (BAN): predictions under adversarial noise on the BatchNorm layers.

Factors :math:`1 + \delta, 1 + \xi` with :math:`|\delta|, |\xi| \le \varepsilon` scale the weights
and biases of all BatchNorm channels so that the cross-entropy of clean images is as high as
possible. A backdoored network then classifies many images as the target class. The
statistic is the increase of the share of images of other classes that are classified as k.

Null distribution: the increases are normal with one mean over classes
(:func:`robustkd.evaluation.audit.outliers.student_outlier`); with references, their mean increase
is subtracted.

Source: Xu, Liu, Koffas, Yu, Picek, *BAN: Detecting Backdoors Activated by Adversarial Neuron
Noise*, NeurIPS 2024, arXiv 2405.19928. Differences: the paper uses the noise to separate features
for a following trigger inversion, and decides by its loss; we test the predictions under noise.

The noise is fitted to the first 128 held-out images, and the predictions are counted on the last
250. With fewer than 378 held-out images, some images or all serve both purposes, and the increases
are then larger than on other images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Images, Labels
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable
from robustkd.models.features.channels import norms, scaled
from robustkd.training.inference import images_at_once

_EPSILON, _STEPS, _IMAGES = 0.3, 10, 128
_COUNTED = 250
_LEAST_SPREAD = 0.05


def neuron_noise(subject: Subject) -> Evidence:
    """Count the predictions of each class under adversarial noise on the channels."""
    images, labels = subject.held_out()
    beside = subject.references.networks
    if not all(norms(each) for each in (subject.network, *beside)):
        return Evidence(None, None, "the network or a reference has no BatchNorm")
    own = increase(subject.network, images, labels, subject.classes)
    theirs = [increase(each, images, labels, subject.classes) for each in beside]
    values = own - torch.stack(theirs).mean(0) if theirs else own
    outlier = student_outlier(values.tolist(), spread=_LEAST_SPREAD)
    if outlier is None:
        return Evidence(None, None, untestable(values.tolist()), tuple(values.tolist()))
    said = f"noise sends {own[outlier.place]:.0%} more images to this class"
    return Evidence(
        outlier.p_value,
        outlier.place,
        said,
        tuple(values.tolist()),
        {"own": own.tolist(), "references": [each.tolist() for each in theirs]},
    )


def increase(network: nn.Module, images: Images, labels: Labels, classes: int) -> Tensor:
    """Return the increase of each class's share of images of other classes, on the CPU."""
    weights, biases = adversarial_factors(network, images[:_IMAGES], labels[:_IMAGES])
    some, own = images[-_COUNTED:], labels[-_COUNTED:]
    at_once = images_at_once(some)
    with torch.no_grad():
        plain = torch.cat([network(part).argmax(1) for part in some.split(at_once)])
        noisy = torch.cat(
            [scaled(network, part, weights, biases).argmax(1) for part in some.split(at_once)]
        )
    return (_shares(noisy, own, classes) - _shares(plain, own, classes)).cpu()


def adversarial_factors(
    network: nn.Module, images: Images, labels: Labels
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Find factors of BatchNorm weights and biases that raise the cross-entropy, by sign steps."""
    found = norms(network)
    factors = [
        {path: torch.ones_like(norm.weight).requires_grad_() for path, norm in found.items()}
        for _ in range(2)
    ]
    leaves = [factor for each in factors for factor in each.values()]
    at_once = images_at_once(images)
    for _ in range(_STEPS):
        slopes = [torch.zeros_like(leaf) for leaf in leaves]
        for some, known in zip(images.split(at_once), labels.split(at_once), strict=True):
            loss = F.cross_entropy(scaled(network, some, *factors), known, reduction="sum")
            # A BatchNorm that the network does not call gets gradients of zero.
            parts = torch.autograd.grad(loss, leaves, materialize_grads=True)
            for slope, part in zip(slopes, parts, strict=True):
                slope += part
        with torch.no_grad():
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.add_(2 * _EPSILON / _STEPS * slope.sign())
                leaf.clamp_(1 - _EPSILON, 1 + _EPSILON)
    return (
        {path: leaf.detach() for path, leaf in factors[0].items()},
        {path: leaf.detach() for path, leaf in factors[1].items()},
    )


def _shares(predicted: Labels, labels: Labels, classes: int) -> Tensor:
    """Return, for each class, the share of images of other classes that are predicted as it."""
    led = predicted[predicted != labels].bincount(minlength=classes)
    others = len(labels) - labels.bincount(minlength=classes)
    return led / others.clamp_min(1)
