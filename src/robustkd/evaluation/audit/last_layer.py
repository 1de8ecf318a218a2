r"""Last layer: weights of one class that differ from those of all others.

.. math:: w_k = \frac{1}{d} \sum_i W_{ki}

for the weight matrix W of the last linear layer. Training on poisoned data can raise the weights of
the target class as a whole.

Null distribution: the :math:`w_k` are normal with one mean
(:func:`robustkd.evaluation.audit.outliers.student_outlier`).

Source: Fields, Samragh, Javaheripi, Koushanfar, Javidi, *Trojan Signatures in DNN Weights*, ICCV
Workshops 2021, arXiv 2109.02836. Difference: the deleted residual in place of Dixon's Q test.
"""

from __future__ import annotations

from torch import Tensor, nn

from robustkd.core.types import Images
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable
from robustkd.models.features.probing import calls, linear_head


def last_layer(subject: Subject) -> Evidence:
    """Test the mean weight of each class in the last layer."""
    images, _ = subject.held_out()
    weights = head_weights(subject.network, images[:2], subject.classes)
    if weights is None:
        return Evidence(None, None, "no last layer with one output per class")
    means = weights.mean(1).cpu().tolist()
    outlier = student_outlier(means)
    if outlier is None:
        return Evidence(None, None, untestable(means), tuple(means))
    said = "the mean weight of this class is the largest"
    return Evidence(outlier.p_value, outlier.place, said, tuple(means))


def head_weights(network: nn.Module, images: Images, classes: int) -> Tensor | None:
    """Return the weights of the layer that makes the logits, classes x inputs.

    This is the linear layer whose output is the logits or, without one, the linear layer or
    convolution that runs last. None if it does not have one output per class.

    Args:
        network: The network.
        images: A few images.
        classes: Number of classes.
    """
    head: nn.Module | None = linear_head(network, images)
    if head is None:
        made, _ = calls(network, images, lambda module: isinstance(module, nn.Linear | nn.Conv2d))
        head = made[-1].module if made else None
    if not isinstance(head, nn.Linear | nn.Conv2d) or len(head.weight) != classes:
        return None
    return head.weight.detach().flatten(1)
