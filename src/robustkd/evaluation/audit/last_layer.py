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

from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable


def last_layer(subject: Subject) -> Evidence:
    """Test the mean weight of each class in the last layer."""
    weights = head_weights(subject.network, subject.classes)
    if weights is None:
        return Evidence(None, None, "no last layer with one output per class")
    means = weights.mean(1).cpu().tolist()
    outlier = student_outlier(means)
    if outlier is None:
        return Evidence(None, None, untestable(means), tuple(means))
    said = "the mean weight of this class is the largest"
    return Evidence(outlier.p_value, outlier.place, said, tuple(means))


def head_weights(network: nn.Module, classes: int) -> Tensor | None:
    """Return the weights of the last linear layer or convolution, classes x inputs.

    None if the last such layer does not have one output per class.
    """
    layers = [each for each in network.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    if not layers or layers[-1].weight.shape[0] != classes:
        return None
    return layers[-1].weight.detach().flatten(1)
